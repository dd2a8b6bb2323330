//! The network between client and bucket: latency is the request handler's, bandwidth is here, below HTTP.
//!
//! Bandwidth is a clock per direction, one for each connection and one for all: a transfer of n bytes moves it on by
//! n / rate, and nobody transfers before its turn. Turns come in quanta of some milliseconds, because timers are no
//! finer; a turn that is taken late does not move the clock, so the long run is exact.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

/// How far a clock may lag behind the time: what was not sent then may still be sent.
const SLACK: Duration = Duration::from_millis(6);
/// How long a quantum lasts at the rate.
const QUANTUM: Duration = Duration::from_millis(4);
const QUANTUM_BYTES: std::ops::RangeInclusive<u64> = 8 << 10..=1 << 20;

/// When the next bytes of a direction may pass.
#[derive(Debug, Default)]
struct Clock(Mutex<Option<Instant>>);

impl Clock {
    /// When the turn after all that were taken begins.
    fn next(&self) -> Option<Instant> {
        *self.0.lock().unwrap()
    }

    /// Takes the next turn for `bytes`, and says when it begins.
    fn reserve(&self, bytes: u64, rate: u64, now: Instant) -> Instant {
        if rate == 0 {
            return now;
        }
        let mut next = self.0.lock().unwrap();
        let earliest = now.checked_sub(SLACK).unwrap_or(now);
        let begin = next.map_or(earliest, |next| next.max(earliest));
        *next = Some(begin + Duration::from_secs_f64(bytes as f64 / rate as f64));
        begin
    }
}

/// What all connections share.
#[derive(Debug, Default)]
pub(crate) struct SharedLink {
    stream_rate: AtomicU64,
    total_rate: AtomicU64,
    incoming: Clock,
    outgoing: Clock,
}

impl SharedLink {
    pub fn configure(&self, link: &crate::config::Link) {
        self.stream_rate.store(link.stream_bytes_per_s, Relaxed);
        self.total_rate.store(link.total_bytes_per_s, Relaxed);
    }

    /// Takes bytes that have come in off both clocks, and says when the next may.
    fn charge_incoming(&self, stream: &Clock, bytes: u64) -> Instant {
        let now = Instant::now();
        stream.reserve(bytes, self.stream_rate.load(Relaxed), now);
        self.incoming
            .reserve(bytes, self.total_rate.load(Relaxed), now);
        stream.next().max(self.incoming.next()).unwrap_or(now)
    }

    /// Bytes of one turn, or none if there is no limit.
    fn quantum(&self) -> Option<u64> {
        let rates = [
            self.stream_rate.load(Relaxed),
            self.total_rate.load(Relaxed),
        ];
        let rate = rates.into_iter().filter(|r| *r != 0).min()?;
        let bytes = (rate as f64 * QUANTUM.as_secs_f64()) as u64;
        Some(bytes.clamp(*QUANTUM_BYTES.start(), *QUANTUM_BYTES.end()))
    }
}

/// What a connection may send.
#[derive(Default)]
struct Direction {
    clock: Clock,
    /// Bytes that may pass now.
    credit: u64,
    /// Turn that was taken and has not begun.
    waiting: Option<(Pin<Box<Sleep>>, u64)>,
}

impl Direction {
    /// Waits until some bytes may pass; says how many, or `None` for any number.
    fn poll_turn(
        &mut self,
        shared: &SharedLink,
        wanted: usize,
        context: &mut Context<'_>,
    ) -> Poll<Option<u64>> {
        if let Some((sleep, bytes)) = &mut self.waiting {
            ready!(sleep.as_mut().poll(context));
            self.credit += *bytes;
            self.waiting = None;
        }
        if self.credit > 0 {
            return Poll::Ready(Some(self.credit));
        }
        let Some(quantum) = shared.quantum() else {
            return Poll::Ready(None);
        };
        let bytes = quantum.min(wanted.max(1) as u64);
        let now = Instant::now();
        let mine = self
            .clock
            .reserve(bytes, shared.stream_rate.load(Relaxed), now);
        let ours = shared
            .outgoing
            .reserve(bytes, shared.total_rate.load(Relaxed), now);
        let begin = mine.max(ours);
        if begin > now + Duration::from_micros(300) {
            let mut sleep = Box::pin(tokio::time::sleep_until(begin.into()));
            if sleep.as_mut().poll(context).is_pending() {
                self.waiting = Some((sleep, bytes));
                return Poll::Pending;
            }
        }
        self.credit = bytes;
        Poll::Ready(Some(bytes))
    }
}

/// What the handler of a connection's requests may ask of it.
#[derive(Debug, Default)]
pub(crate) struct ConnectionControl {
    /// End it with a reset, not in good order.
    pub reset: AtomicBool,
}

/// A connection with its bandwidth.
pub(crate) struct ShapedStream {
    stream: TcpStream,
    shared: Arc<SharedLink>,
    control: Arc<ConnectionControl>,
    incoming: Clock,
    incoming_debt: Option<Pin<Box<Sleep>>>,
    outgoing: Direction,
}

impl ShapedStream {
    pub fn new(
        stream: TcpStream,
        shared: Arc<SharedLink>,
        control: Arc<ConnectionControl>,
    ) -> Self {
        Self {
            stream,
            shared,
            control,
            incoming: Clock::default(),
            incoming_debt: None,
            outgoing: Direction::default(),
        }
    }
}

impl Drop for ShapedStream {
    fn drop(&mut self) {
        if self.control.reset.load(Relaxed) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for ShapedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Paid for afterwards: how much has come, and in what small pieces, is known only then. A debt below a quantum
        // is not waited for, for timers cost more than the bytes.
        if let Some(sleep) = &mut this.incoming_debt {
            ready!(sleep.as_mut().poll(context));
            this.incoming_debt = None;
        }
        let Some(quantum) = this.shared.quantum() else {
            return pin!(&mut this.stream).poll_read(context, buf);
        };
        let before = buf.filled().len();
        let mut part = (&mut this.stream).take(quantum);
        ready!(pin!(&mut part).poll_read(context, buf))?;
        let read = buf.filled().len() - before;
        let next = this.shared.charge_incoming(&this.incoming, read as u64);
        if next > Instant::now() + QUANTUM {
            this.incoming_debt = Some(Box::pin(tokio::time::sleep_until(next.into())));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ShapedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let turn = this.outgoing.poll_turn(&this.shared, buf.len(), context);
        let Some(credit) = ready!(turn) else {
            return pin!(&mut this.stream).poll_write(context, buf);
        };
        let limit = buf.len().min(credit as usize);
        let written = ready!(pin!(&mut this.stream).poll_write(context, &buf[..limit]))?;
        this.outgoing.credit -= written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let wanted = bufs.iter().map(|b| b.len()).sum();
        let turn = this.outgoing.poll_turn(&this.shared, wanted, context);
        let Some(credit) = ready!(turn) else {
            return pin!(&mut this.stream).poll_write_vectored(context, bufs);
        };
        let mut left = credit as usize;
        let mut allowed = Vec::with_capacity(bufs.len());
        for buf in bufs {
            let len = buf.len().min(left);
            if len > 0 {
                allowed.push(IoSlice::new(&buf[..len]));
                left -= len;
            }
        }
        let written = ready!(pin!(&mut this.stream).poll_write_vectored(context, &allowed))?;
        this.outgoing.credit -= written as u64;
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.control.reset.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        pin!(&mut self.stream).poll_shutdown(context)
    }
}
