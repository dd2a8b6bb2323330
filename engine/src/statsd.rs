//! Sends what is [counted](crate::metrics) to a statsd server, for processes that live too short to be asked for it, such as the gofers of a node.
//!
//! Every increment is sent as one, so that the server adds up what many processes count. Durations are sent as timers, in milliseconds. Losing some of
//! it loses nothing else: nobody waits for the server, and nobody notices if there is none.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs, UdpSocket},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use cadence::{BufferedUdpMetricSink, MetricSink};
use metrics_exporter_statsd::StatsdBuilder;

use crate::{Error, Result};

/// Bytes of one datagram: what an Ethernet carries in one piece, as statsd's own documentation advises
/// (<https://github.com/statsd/statsd/blob/master/docs/metric_types.md#multi-metric-packets>).
const DATAGRAM_LEN: usize = 1432;

/// How long something may wait to be sent together with others.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends this process's metrics to a statsd server until it is dropped, which sends the last of them.
#[derive(Debug)]
pub struct Statsd {
    running: Option<mpsc::Sender<()>>,
    flushing: Option<JoinHandle<()>>,
}

/// The datagram that is being filled. The recorder, which lives as long as the process, and who flushes share it.
#[derive(Debug, Clone)]
struct Datagram(Arc<BufferedUdpMetricSink>);

impl MetricSink for Datagram {
    fn emit(&self, metric: &str) -> io::Result<usize> {
        self.0.emit(metric)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Statsd {
    /// Becomes the process's recorder of metrics. `address` is `HOST:PORT`, spoken to by UDP.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) if the address is none or has no host, and if the process has a recorder already.
    pub fn start(address: &str) -> Result<Self> {
        let server = resolve(address).map_err(|e| {
            Error::invalid(format!("{address:?} is no address of a statsd server"))
                .hint("write HOST:PORT, such as 127.0.0.1:8125")
                .because(e)
        })?;
        let start = || {
            let any = match server {
                SocketAddr::V4(_) => "0.0.0.0:0",
                SocketAddr::V6(_) => "[::]:0",
            };
            let socket = UdpSocket::bind(any)?;
            socket.set_nonblocking(true)?;
            let sink = BufferedUdpMetricSink::with_capacity(server, socket, DATAGRAM_LEN);
            sink.map(|sink| Datagram(Arc::new(sink)))
                .map_err(io::Error::other)
        };
        let cannot = |e| Error::invalid(format!("cannot send metrics to {address}")).because(e);
        let datagram = start().map_err(cannot)?;
        let recorder = StatsdBuilder::from("", 0)
            .histogram_is_timer()
            .with_sink(datagram.clone())
            .build(None)
            .map_err(|e| Error::invalid(format!("cannot send metrics to {address}")).because(e))?;
        metrics::set_global_recorder(recorder)
            .map_err(|_| Error::invalid("this process has its metrics recorded already"))?;
        let (running, ended) = mpsc::channel();
        let flushing = thread::Builder::new()
            .name("podsnap-statsd".to_owned())
            .spawn(move || {
                loop {
                    let waited = ended.recv_timeout(PATIENCE);
                    // What cannot be sent is lost, like a datagram on its way.
                    let _ = datagram.flush();
                    if waited != Err(mpsc::RecvTimeoutError::Timeout) {
                        return;
                    }
                }
            })
            .map_err(cannot)?;
        Ok(Self {
            running: Some(running),
            flushing: Some(flushing),
        })
    }
}

impl Drop for Statsd {
    fn drop(&mut self) {
        drop(self.running.take());
        if let Some(flushing) = self.flushing.take() {
            let _ = flushing.join();
        }
    }
}

fn resolve(address: &str) -> io::Result<SocketAddr> {
    let found = address.to_socket_addrs()?.next();
    found.ok_or_else(|| io::Error::other("the host has no address"))
}
