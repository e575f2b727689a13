//! Cases that every crypto engine must pass enter, trials leave: one for each engine and case. Where this CPU cannot run an
//! engine, its trials say so in their names and are counted as ignored.

use libtest_mimic::{Failed, Trial};
use penstock_dataplane::crypto::{self, Engine};

/// What an engine must do: its name, and the function that fails where the engine does not.
pub type Case = (&'static str, fn(&'static dyn Engine));

/// The trials of all engines.
pub fn trials(cases: &[Case]) -> Vec<Trial> {
    crypto::names().iter().flat_map(|name| of_engine(name, crypto::select(Some(name)), cases)).collect()
}

fn of_engine(
    name: &str,
    engine: Result<&'static dyn Engine, crypto::EngineError>,
    cases: &[Case],
) -> Vec<Trial> {
    let trial = |&(case, check): &Case| match engine.clone() {
        Ok(engine) => Trial::test(format!("{name}: {case}"), move || {
            check(engine);
            Ok(())
        }),
        Err(error) => {
            let skipped = format!("{name}: {case} (SKIPPED: {error})");
            Trial::test(skipped, move || Err(Failed::from(error))).with_ignored_flag(true)
        }
    };
    cases.iter().map(trial).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_the_cpu_lacks_is_skipped_aloud() {
        let error = crypto::EngineError::Unsupported { name: "vaes", missing: "VAES, VPCLMULQDQ".to_owned() };
        let trials = of_engine("vaes", Err(error), &[("a case", |_| {})]);
        assert_eq!(trials.len(), 1);
        assert!(trials[0].has_ignored_flag());
        let name = trials[0].name();
        assert!(name.starts_with("vaes: a case (SKIPPED: ") && name.contains("VAES, VPCLMULQDQ"), "{name}");
    }
}
