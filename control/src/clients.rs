//! The clients that a server has at one time: a new connection enters with its owner, a seat leaves. None of them
//! keeps the others out: where all seats are taken, the one that has been idle longest is closed in favour of the
//! new one; where none is idle, the one that takes longest to read its answer. Who has its share closes its own.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};
use tokio::sync::Notify;
use tokio::time::timeout;

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in all.
    pub all: usize,
    /// Connections of one owner.
    pub each: usize,
    /// How long a connection may be idle before its request begins.
    pub idle: Duration,
    /// How long a request may take to arrive, from its first octet.
    pub request: Duration,
    /// How long an answer may take to be read.
    pub answer: Duration,
}

/// The seats of one server.
#[derive(Debug)]
pub struct Clients<K> {
    limits: Limits,
    seats: Arc<Mutex<Seats<K>>>,
}

#[derive(Debug)]
struct Seats<K> {
    taken: Vec<Taken<K>>,
    /// Counts seats and what happens to them: the order is all that matters.
    clock: u64,
}

#[derive(Debug)]
struct Taken<K> {
    number: u64,
    owner: K,
    stage: Stage,
    close: Arc<Notify>,
}

/// What a seat is waiting for, and since when. Those that may go first are the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The client's request.
    Idle(u64),
    /// The client, which does not read its answer.
    Answer(u64),
    /// The gateway: not the client's fault.
    Asked,
}

/// One connection's seat, free again when it is dropped. It is idle at first.
#[derive(Debug)]
pub struct Seat<K> {
    number: u64,
    limits: Limits,
    seats: Arc<Mutex<Seats<K>>>,
    close: Arc<Notify>,
}

impl<K: PartialEq> Clients<K> {
    /// Nobody yet.
    pub fn new(limits: Limits) -> Clients<K> {
        Clients { limits, seats: Arc::new(Mutex::new(Seats { taken: Vec::new(), clock: 0 })) }
    }

    /// Seats a new connection, in place of another where it must be. `None` where the gateway itself keeps all
    /// that could go waiting.
    pub fn seat(&self, owner: K) -> Option<Seat<K>> {
        let mut seats = lock(&self.seats);
        let own = seats.taken.iter().filter(|taken| taken.owner == owner).count();
        if own >= self.limits.each {
            seats.close_oldest(|taken| taken.owner == owner)?;
        } else if seats.taken.len() >= self.limits.all {
            seats.close_oldest(|_| true)?;
        }
        let (number, close) = (seats.tick(), Arc::new(Notify::new()));
        seats.taken.push(Taken { number, owner, stage: Stage::Idle(number), close: close.clone() });
        Some(Seat { number, limits: self.limits, seats: self.seats.clone(), close })
    }
}

impl<K> Seats<K> {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn close_oldest(&mut self, may_go: impl Fn(&Taken<K>) -> bool) -> Option<()> {
        let of_these = self.taken.iter().enumerate().filter(|(_, taken)| may_go(taken));
        let waiting = of_these.filter(|(_, taken)| taken.stage != Stage::Asked);
        let (at, _) = waiting.min_by_key(|(_, taken)| taken.stage)?;
        self.taken.swap_remove(at).close.notify_one();
        Some(())
    }
}

impl<K> Seat<K> {
    /// Waits for a request of at most so many octets that ends with `end`, in time and unless the seat is needed
    /// for another. `None` where there is none; one that has no end is returned as it is. The seat is kept until
    /// [`Seat::answer`].
    ///
    /// # Errors
    /// Where the connection breaks.
    pub async fn request(
        &self,
        from: &mut (impl AsyncBufRead + Unpin),
        end: &[u8],
        most: usize,
    ) -> io::Result<Option<Vec<u8>>> {
        let arrives = async {
            let Ok(begun) = timeout(self.limits.idle, from.fill_buf()).await else { return Ok(None) };
            if begun?.is_empty() {
                return Ok(None);
            }
            timeout(self.limits.request, read_until(from, end, most)).await.ok().transpose()
        };
        let request = tokio::select! {
            biased;
            () = self.close.notified() => return Ok(None),
            request = arrives => request?,
        };
        // It may have been closed at this very moment.
        let kept = self.enter(|_| Stage::Asked).is_some();
        Ok(request.filter(|_| kept))
    }

    /// Waits until an answer is read, unless the seat is needed for another; it is idle again then.
    ///
    /// # Errors
    /// Where the connection breaks, or it takes too long.
    pub async fn answer(&self, written: impl Future<Output = io::Result<()>>) -> io::Result<()> {
        self.enter(Stage::Answer);
        let written = tokio::select! {
            biased;
            () = self.close.notified() => return Err(io::ErrorKind::ConnectionAborted.into()),
            written = timeout(self.limits.answer, written) => written,
        };
        self.enter(Stage::Idle);
        written?
    }

    fn enter(&self, stage: impl FnOnce(u64) -> Stage) -> Option<()> {
        let mut seats = lock(&self.seats);
        let now = seats.tick();
        seats.taken.iter_mut().find(|taken| taken.number == self.number)?.stage = stage(now);
        Some(())
    }
}

/// Reads up to and with `end`, or until there is no more, or no room.
async fn read_until(from: &mut (impl AsyncBufRead + Unpin), end: &[u8], most: usize) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    loop {
        let (mut taken, there) = (0, from.fill_buf().await?);
        if there.is_empty() {
            return Ok(request);
        }
        for octet in there {
            taken += 1;
            request.push(*octet);
            if request.ends_with(end) || request.len() == most {
                from.consume(taken);
                return Ok(request);
            }
        }
        from.consume(taken);
    }
}

impl<K> Drop for Seat<K> {
    fn drop(&mut self) {
        lock(&self.seats).taken.retain(|taken| taken.number != self.number);
    }
}

/// Nothing is left half done where a holder panics.
fn lock<K>(seats: &Mutex<Seats<K>>) -> MutexGuard<'_, Seats<K>> {
    seats.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};

    use super::*;

    const LIMITS: Limits = Limits {
        all: 3,
        each: 2,
        idle: Duration::from_secs(60),
        request: Duration::from_secs(10),
        answer: Duration::from_secs(30),
    };

    /// Answers each line with ten octets; a client that does not read holds it up after four.
    fn serve(clients: &Clients<u8>, owner: u8) -> Option<DuplexStream> {
        let seat = clients.seat(owner)?;
        let (here, there) = duplex(4);
        tokio::spawn(async move {
            let mut stream = BufReader::new(there);
            while let Ok(Some(_)) = seat.request(&mut stream, b"\n", 100).await {
                let answer = stream.get_mut();
                if seat.answer(answer.write_all(b"an answer\n")).await.is_err() {
                    return;
                }
            }
        });
        Some(here)
    }

    async fn is_answered(client: &mut DuplexStream) -> bool {
        let mut answer = [0; 10];
        client.write_all(b"x\n").await.is_ok() && client.read_exact(&mut answer).await.is_ok()
    }

    async fn is_closed(client: &mut DuplexStream) -> bool {
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.is_ok()
    }

    #[tokio::test]
    async fn the_longest_idle_goes_first_and_each_owner_for_itself() {
        let clients = Clients::new(LIMITS);
        let mut first = serve(&clients, 1).expect("room");
        let mut second = serve(&clients, 1).expect("room");
        assert!(is_answered(&mut first).await, "so it has been idle less long than the second");
        let mut third = serve(&clients, 1).expect("in place of the second");
        assert!(is_closed(&mut second).await);
        let mut other = serve(&clients, 2).expect("room");
        let mut another = serve(&clients, 3).expect("in place of the first");
        assert!(is_closed(&mut first).await);
        for client in [&mut third, &mut other, &mut another] {
            assert!(is_answered(client).await);
        }
    }

    #[tokio::test]
    async fn who_does_not_read_its_answer_goes_where_nobody_is_idle() {
        let clients = Clients::new(LIMITS);
        let mut deaf = [serve(&clients, 1).expect("room"), serve(&clients, 1).expect("room")];
        for client in &mut deaf {
            client.write_all(b"x\n").await.expect("room");
            assert_eq!(client.read(&mut [0; 1]).await.expect("an answer"), 1);
        }
        let mut late = serve(&clients, 1).expect("in place of one that does not read");
        assert!(is_answered(&mut late).await);
        assert!(is_closed(&mut deaf[0]).await);
    }

    #[tokio::test]
    async fn what_the_gateway_is_asked_for_is_answered() {
        let clients = Clients::new(LIMITS);
        let seats = [clients.seat(1).expect("room"), clients.seat(1).expect("room")];
        for seat in &seats {
            seat.request(&mut &b"x\n"[..], b"\n", 100).await.expect("no error").expect("a request");
        }
        assert!(clients.seat(1).is_none(), "both wait for the gateway");
        assert!(clients.seat(2).is_some());
        drop(seats);
        assert!(clients.seat(1).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_a_slow_request_and_a_slow_reader_end() {
        let clients = Clients::new(LIMITS);
        let mut silent = serve(&clients, 1).expect("room");
        let begun = tokio::time::Instant::now();
        assert!(is_closed(&mut silent).await);
        assert_eq!(begun.elapsed().as_secs(), 60);
        let (mut slow, begun) = (serve(&clients, 1).expect("room"), tokio::time::Instant::now());
        // An octet a second: never idle, and never done.
        while slow.write_all(b"x").await.is_ok() && begun.elapsed().as_secs() < 100 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!((10..=11).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        let (mut deaf, begun) = (serve(&clients, 1).expect("room"), tokio::time::Instant::now());
        deaf.write_all(b"x\n").await.expect("room");
        // What it would say more is not read either.
        while deaf.write_all(b"xx").await.is_ok() {}
        assert_eq!(begun.elapsed().as_secs(), 30);
    }

    #[tokio::test]
    async fn requests_end_where_they_end() {
        let clients = Clients::new(LIMITS);
        let seat = clients.seat(1).expect("room");
        let mut text = &b"one\r\n\r\ntwo\r\n\r\nlong and longer"[..];
        let ends: [&[u8]; 3] = [b"one\r\n\r\n", b"two\r\n\r\n", b"long and "];
        for request in ends {
            let found = seat.request(&mut text, b"\r\n\r\n", 9).await.expect("no error");
            assert_eq!(found.as_deref(), Some(request));
        }
    }
}
