//! Ranges of objects: pinned to a generation, asked for a second time where the first byte is late, and resumed in mid-body.

use std::{ops::Range, sync::atomic::Ordering::Relaxed};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::time::{Instant, sleep, timeout};

use super::{
    client::{Client, Failure, Request, Response, object_length},
    objects::decode_crc32c,
};
use crate::{
    error::{Error, ErrorKind, Result},
    store::{ReadRange, too_short},
};

/// A range that is read at once is never longer than this, in bytes.
const MAX_READ_LEN: u64 = 256 << 20;

/// Bytes that must have come before a broken download is resumed at once instead of after a wait.
const PROGRESS: usize = 64 << 10;

/// Bytes of an object.
pub(super) struct Downloaded {
    pub(super) bytes: Bytes,
    /// Where they stand in it.
    pub(super) offset: u64,
    pub(super) object_len: u64,
    pub(super) generation: u64,
}

/// What is being read, once the first answer has told where it lies.
struct Partial {
    range: Range<u64>,
    object_len: u64,
    generation: u64,
    bytes: BytesMut,
    /// Of the whole object, if all of it is read and the store says.
    crc32c: Option<u32>,
}

/// Times that an object whose checksum is wrong is read again.
const MAX_REREADS: u32 = 4;

/// Reads a range, of that generation if one is given.
pub(super) async fn read(
    client: &Client,
    object: &str,
    range: &ReadRange,
    generation: Option<u64>,
) -> Result<Downloaded> {
    let len = match range {
        ReadRange::Exact(range) => range.end.saturating_sub(range.start),
        ReadRange::Suffix(len) => *len,
    };
    if len > MAX_READ_LEN {
        return Err(Error::invalid(format!(
            "{len} bytes of {} are too many for one read",
            client.place(object)
        )));
    }
    if len == 0 {
        return nothing(client, object, range).await;
    }
    let mut tries = client.tries();
    let mut refreshed = false;
    let mut partial = None;
    loop {
        let before = received(&partial);
        let turn = client.downloads.turn(len).await;
        let attempted = attempt(client, object, range, generation, &mut partial).await;
        match &attempted {
            Ok(()) => turn.went_well(),
            Err(Failure::Throttled(..)) => turn.was_throttled(),
            Err(_) => drop(turn),
        }
        let failed = match (attempted, partial.take()) {
            (Ok(()), Some(done)) => match wrong_checksum(client, object, &done) {
                None => {
                    return Ok(Downloaded {
                        bytes: done.bytes.freeze(),
                        offset: done.range.start,
                        object_len: done.object_len,
                        generation: done.generation,
                    });
                }
                // Nothing of it can be used.
                Some(error) if tries.count() > MAX_REREADS => Failure::Final(error),
                Some(error) => Failure::Passing(error, None),
            },
            (Ok(()), None) => unreachable!("an attempt that ends well has read everything"),
            (Err(failed), so_far) => {
                partial = so_far;
                failed
            }
        };
        let (error, asked_for) = match failed {
            Failure::Unauthorized(_, token) if client.may_refresh(&mut refreshed, &token).await => {
                continue;
            }
            Failure::Unauthorized(e, _) | Failure::Final(e) => return Err(e),
            Failure::Passing(e, asked_for) | Failure::Throttled(e, asked_for) => (e, asked_for),
        };
        tracing::debug!(%error, tries = tries.count(), "a download failed");
        if received(&partial) >= before + PROGRESS {
            tries.progressed();
            client.counters.resumed.fetch_add(1, Relaxed);
        } else if tries.another(asked_for).await {
            client.counters.retried();
        } else {
            return Err(error.hint(format!("given up after {} tries", tries.count())));
        }
    }
}

/// The error for an object that came whole but not as it is stored.
fn wrong_checksum(client: &Client, object: &str, done: &Partial) -> Option<Error> {
    let (expected, found) = (done.crc32c?, crc32c::crc32c(&done.bytes));
    (expected != found).then(|| {
        Error::damaged(
            client.place(object),
            format!("its CRC-32C is {found:08x}, the store says {expected:08x}"),
        )
    })
}

fn received(partial: &Option<Partial>) -> usize {
    partial.as_ref().map_or(0, |p| p.bytes.len())
}

/// An empty range, which HTTP cannot ask for.
async fn nothing(client: &Client, object: &str, range: &ReadRange) -> Result<Downloaded> {
    let answer = client.get_metadata(object).await?;
    let object_len = answer.resource_size()?;
    let offset = match range {
        ReadRange::Exact(range) if range.start > object_len => {
            return Err(too_short(&client.place(object), object_len, range));
        }
        ReadRange::Exact(range) => range.start,
        ReadRange::Suffix(_) => object_len,
    };
    Ok(Downloaded {
        bytes: Bytes::new(),
        offset,
        object_len,
        generation: answer.resource_generation()?,
    })
}

/// Asks for what is missing and receives as much of it as comes.
async fn attempt(
    client: &Client,
    object: &str,
    wanted: &ReadRange,
    generation: Option<u64>,
    partial: &mut Option<Partial>,
) -> Result<(), Failure> {
    let (asked, generation) = match (&*partial, wanted) {
        (Some(p), _) => {
            let from = p.range.start + p.bytes.len() as u64;
            (
                format!("bytes={from}-{}", p.range.end - 1),
                Some(p.generation),
            )
        }
        (None, ReadRange::Exact(r)) => (format!("bytes={}-{}", r.start, r.end - 1), generation),
        (None, ReadRange::Suffix(len)) => (format!("bytes=-{len}"), generation),
    };
    let mut url = format!("{}?alt=media", client.object_url(object));
    if let Some(generation) = generation {
        url.push_str(&format!("&generation={generation}"));
    }
    let mut request = Request::get(url, object);
    let value = HeaderValue::from_str(&asked).expect("digits");
    request.headers.insert(header::RANGE, value);
    let response = send_hedged(client, &request).await?;

    let place = client.place(object);
    let offered = offered(&response).map_err(|why| lies(&place, &asked, &why))?;
    let receiving = match partial {
        None => {
            let range = match wanted {
                ReadRange::Exact(range) if offered.object_len < range.end => {
                    return Err(Failure::Final(too_short(&place, offered.object_len, range)));
                }
                ReadRange::Exact(range) => range.clone(),
                ReadRange::Suffix(len) => {
                    offered.object_len.saturating_sub(*len)..offered.object_len
                }
            };
            let whole = range == (0..offered.object_len);
            partial.insert(Partial {
                crc32c: offered.crc32c.filter(|_| whole),
                bytes: BytesMut::with_capacity((range.end - range.start) as usize),
                range,
                object_len: offered.object_len,
                generation: offered.generation.or(generation).unwrap_or(0),
            })
        }
        Some(partial) => partial,
    };
    let next = receiving.range.start + receiving.bytes.len() as u64;
    if offered.range != (next..receiving.range.end) {
        return Err(lies(
            &place,
            &asked,
            &format!("it offers {:?}", offered.range),
        ));
    }
    receive(client, response, receiving, &place, &asked).await
}

/// What the head of a response promises.
struct Offered {
    range: Range<u64>,
    object_len: u64,
    generation: Option<u64>,
    crc32c: Option<u32>,
}

fn offered(response: &Response) -> Result<Offered, String> {
    let headers = response.response.headers();
    let number = |name| -> Option<u64> { headers.get(name)?.to_str().ok()?.parse().ok() };
    let generation = number(header::HeaderName::from_static("x-goog-generation"));
    if response.response.status() == StatusCode::PARTIAL_CONTENT {
        let object_len = object_length(headers).ok_or("its Content-Range has no length")?;
        let range = content_range(headers).ok_or("its Content-Range makes no sense")?;
        if range.end > object_len {
            return Err("its Content-Range lies outside of the object".to_owned());
        }
        return Ok(Offered {
            range,
            object_len,
            generation,
            crc32c: stored_crc32c(headers),
        });
    }
    // The whole object, because all of it was asked for.
    let object_len = number(header::CONTENT_LENGTH).ok_or("it has no Content-Length")?;
    Ok(Offered {
        range: 0..object_len,
        object_len,
        generation,
        crc32c: stored_crc32c(headers),
    })
}

/// The whole object's CRC-32C, from `x-goog-hash: crc32c=BASE64,md5=...`.
fn stored_crc32c(headers: &HeaderMap) -> Option<u32> {
    let values = headers.get_all("x-goog-hash").iter();
    let mut hashes = values
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','));
    decode_crc32c(hashes.find_map(|hash| hash.trim().strip_prefix("crc32c="))?)
}

/// The range of `bytes FIRST-LAST/LENGTH`.
fn content_range(headers: &HeaderMap) -> Option<Range<u64>> {
    let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (first, last) = value
        .strip_prefix("bytes ")?
        .split_once('/')?
        .0
        .split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..last.checked_add(1)?)
}

/// A response that does not fit what was asked for: perhaps the next one does.
fn lies(place: &str, asked: &str, why: &str) -> Failure {
    let error = Error::new(
        ErrorKind::Store,
        format!("{place}: the store was asked for {asked}, but {why}"),
    );
    Failure::Passing(error, None)
}

async fn receive(
    client: &Client,
    response: Response,
    partial: &mut Partial,
    place: &str,
    asked: &str,
) -> Result<(), Failure> {
    let Response {
        response,
        connection: _connection,
    } = response;
    let len = (partial.range.end - partial.range.start) as usize;
    let mut body = response.into_body().bytes_stream();
    let broken = |why: String| lies(place, asked, &why);
    while partial.bytes.len() < len {
        let next = timeout(client.policy.stall_timeout, body.next()).await;
        match next {
            Err(_) => return Err(broken("stopped sending in the middle".to_owned())),
            Ok(None) => {
                return Err(broken(format!("it sent {} bytes", partial.bytes.len())));
            }
            Ok(Some(Err(e))) => return Err(broken(format!("broke off: {e}"))),
            Ok(Some(Ok(bytes))) => {
                client
                    .counters
                    .received
                    .fetch_add(bytes.len() as u64, Relaxed);
                if bytes.len() > len - partial.bytes.len() {
                    return Err(broken("it sent more".to_owned()));
                }
                partial.bytes.extend_from_slice(&bytes);
            }
        }
    }
    // Reading the end lets the connection be used again.
    let _ = timeout(client.policy.stall_timeout, body.next()).await;
    Ok(())
}

/// Sends a request, and once more if the first byte of its answer is late; the first answer counts.
async fn send_hedged(client: &Client, request: &Request<'_>) -> Result<Response, Failure> {
    let started = Instant::now();
    let first = client.send(request);
    tokio::pin!(first);
    let answered = tokio::select! {
        answer = &mut first => Some(answer),
        () = sleep(client.latencies.late()) => None,
    };
    let (answer, since) = match answered {
        Some(answer) => (answer, started),
        None if client.counters.take_hedge() => {
            let again = Instant::now();
            let second = client.send(request);
            tokio::pin!(second);
            // One that fails leaves the other its chance.
            tokio::select! {
                answer = &mut first => match answer {
                    Ok(answer) => (Ok(answer), started),
                    Err(_) => (second.await, again),
                },
                answer = &mut second => match answer {
                    Ok(answer) => (Ok(answer), again),
                    Err(_) => (first.await, started),
                },
            }
        }
        None => (first.await, started),
    };
    if answer.is_ok() {
        client.latencies.record(since.elapsed());
    }
    answer
}
