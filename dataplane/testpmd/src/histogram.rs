//! Times in, percentiles out: buckets of a sixty-fourth of their power of two, so at most 1.6 % off, without allocation.

/// Buckets of a power of two.
const STEPS: u64 = 64;
const STEPS_LOG2: u32 = STEPS.trailing_zeros();

/// See the module.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Box<[u64]>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        let buckets = vec![0; ((64 - STEPS_LOG2 as usize) + 1) * STEPS as usize].into();
        Histogram { buckets, count: 0, max: 0 }
    }
}

impl Histogram {
    /// Adds one value.
    #[inline(always)]
    pub fn add(&mut self, value: u64) {
        if let Some(bucket) = self.buckets.get_mut(index(value)) {
            *bucket += 1;
        }
        self.count += 1;
        self.max = self.max.max(value);
    }

    /// Adds all values of another one.
    pub fn merge(&mut self, other: &Histogram) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(mine, its)| *mine += its);
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The value that `part` (0 to 1) of all do not exceed, rounded up to its bucket's end; 0 where there is none.
    pub fn at(&self, part: f64) -> u64 {
        let wanted = (self.count as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return end(index).min(self.max);
            }
        }
        self.max
    }

    /// The largest value.
    pub fn max(&self) -> u64 {
        self.max
    }
}

#[inline(always)]
fn index(value: u64) -> usize {
    let power = (value | (STEPS - 1)).ilog2() - (STEPS_LOG2 - 1);
    if value < STEPS {
        return value as usize;
    }
    let step = (value >> (power - 1)) - STEPS;
    (u64::from(power) * STEPS + step) as usize
}

/// The largest value of a bucket.
fn end(index: usize) -> u64 {
    let (power, step) = (index as u64 / STEPS, index as u64 % STEPS);
    if power == 0 {
        return step;
    }
    ((u128::from(STEPS + step + 1) << (power - 1)) - 1) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_at_most_a_sixty_fourth_off() {
        let mut last = 0;
        for value in
            (0..5000).chain((13..63).map(|shift| (1u64 << shift) + (1 << (shift - 3)))).chain([u64::MAX])
        {
            let at = index(value);
            assert!(at >= last, "{value}");
            last = at;
            assert!(end(at) >= value && end(at) - value <= value / 64, "{value} in a bucket to {}", end(at));
        }
    }

    #[test]
    fn percentiles_count_from_below() {
        let mut times = Histogram::default();
        assert_eq!((times.at(0.5), times.max()), (0, 0));
        (1..=1000).for_each(|value| times.add(value));
        let close = |part, value: u64| (value..=value + value / 64).contains(&times.at(part));
        assert!(close(0.5, 500) && close(0.99, 990) && close(0.001, 1), "{}", times.at(0.5));
        assert_eq!((times.at(1.0), times.max()), (1000, 1000));
        let mut more = Histogram::default();
        more.add(9000);
        more.merge(&times);
        assert_eq!((more.at(1.0), more.max()), (9000, 9000));
        assert!((1000..1016).contains(&more.at(0.999)));
    }
}
