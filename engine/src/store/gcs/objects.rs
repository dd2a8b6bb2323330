//! What is done with objects: written, composed, removed, listed, so that a repetition can do no harm and a write whose answer was lost is
//! recognised as our own.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::Method;
use object_store::PutPayload;
use serde_json::{Value, json};

use super::client::{Client, Request, escaped};
use crate::error::{Error, ErrorKind, Result};

/// The key, in an object's own metadata, of the token of the request that wrote it: tells a write whose answer was lost from somebody
/// else's.
const WRITE_TOKEN: &str = "podsnap-write";

/// What a write demands of the object that is there.
#[derive(Debug, Clone, Copy)]
pub(super) enum Conditional {
    Absent,
    Generation(u64),
}

impl Conditional {
    /// The value of `ifGenerationMatch`.
    fn generation(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Generation(generation) => generation,
        }
    }
}

/// A JSON answer.
pub(super) struct Answer {
    pub(super) json: Value,
    object: String,
}

impl Answer {
    /// A 64-bit number, which Google writes as text.
    fn number(&self, field: &str) -> Result<u64> {
        let value = &self.json[field];
        value
            .as_str()
            .and_then(|text| text.parse().ok())
            .or_else(|| value.as_u64())
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Store,
                    format!("the store's answer about {} has no {field}", self.object),
                )
            })
    }

    pub(super) fn resource_size(&self) -> Result<u64> {
        self.number("size")
    }

    pub(super) fn resource_generation(&self) -> Result<u64> {
        self.number("generation")
    }

    fn crc32c(&self) -> Option<u32> {
        decode_crc32c(self.json["crc32c"].as_str()?)
    }

    /// The object that the answer describes, if it is this one.
    fn stored(&self, len: u64, crc32c: u32) -> Result<Option<Stored>> {
        let same = self.resource_size()? == len && self.crc32c() == Some(crc32c);
        let generation = self.resource_generation()?;
        Ok(same.then_some(Stored {
            generation,
            len,
            crc32c,
        }))
    }
}

/// An object that was written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) generation: u64,
    pub(super) len: u64,
    pub(super) crc32c: u32,
}

/// An object of a listing.
pub(super) struct ListedObject {
    pub(super) name: String,
    pub(super) len: u64,
    pub(super) generation: u64,
}

/// A source of a compose.
pub(super) struct Component {
    pub(super) name: String,
    pub(super) stored: Stored,
}

impl Client {
    /// [`Client::call`] for an answer in JSON.
    pub(super) async fn call_json(&self, request: &Request<'_>) -> Result<Answer, (Error, u32)> {
        let (bytes, tries) = self.call(request).await?;
        let json = serde_json::from_slice(&bytes).map_err(|e| {
            let place = self.place(request.object);
            let what = format!("the store's answer about {place} makes no sense");
            (Error::new(ErrorKind::Store, what).because(e), tries)
        })?;
        Ok(Answer {
            json,
            object: self.place(request.object),
        })
    }

    pub(super) async fn get_metadata(&self, object: &str) -> Result<Answer> {
        let request = Request::get(self.object_url(object), object);
        self.call_json(&request).await.map_err(|(e, _)| e)
    }

    /// Writes an object whole. A write whose answer was lost is recognised as our own.
    pub(super) async fn insert(
        &self,
        object: &str,
        bytes: Bytes,
        condition: Conditional,
    ) -> Result<Stored> {
        const BOUNDARY: &str = "podsnap-e0b27c5f8f4a";
        let (len, crc32c) = (bytes.len() as u64, crc32c::crc32c(&bytes));
        let token = uuid::Uuid::new_v4().to_string();
        let resource = json!({
            "name": object,
            "contentType": "application/octet-stream",
            "crc32c": BASE64.encode(crc32c.to_be_bytes()),
            "metadata": { WRITE_TOKEN: token },
        });
        let head = format!(
            "--{BOUNDARY}\r\nContent-Type: application/json; charset=utf-8\r\n\r\n{resource}\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n"
        );
        let body: PutPayload = [
            Bytes::from(head),
            bytes,
            Bytes::from(format!("\r\n--{BOUNDARY}--\r\n")),
        ]
        .into_iter()
        .collect();
        let url = format!(
            "{}/upload/storage/v1/b/{}/o?uploadType=multipart&ifGenerationMatch={}",
            self.base,
            escaped(&self.bucket),
            condition.generation()
        );
        let request = Request::mutation(
            Method::POST,
            url,
            "write",
            match condition {
                Conditional::Absent => "storage.objects.create",
                Conditional::Generation(_) => "storage.objects.create and storage.objects.delete",
            },
            object,
        )
        .with_body(&format!("multipart/related; boundary={BOUNDARY}"), body);
        let answer = match self.call_json(&request).await {
            Ok(answer) => answer,
            // An earlier try may have been carried out although it was not answered.
            Err((e, tries)) if tries > 1 && e.kind() == ErrorKind::Conflict => {
                let found = self.get_metadata(object).await?;
                if found.json["metadata"][WRITE_TOKEN].as_str() != Some(&token) {
                    return Err(e);
                }
                found
            }
            Err((e, _)) => return Err(e),
        };
        match answer.stored(len, crc32c)? {
            Some(stored) => Ok(stored),
            None => Err(self.stored_otherwise(object)),
        }
    }

    fn stored_otherwise(&self, object: &str) -> Error {
        Error::new(
            ErrorKind::Store,
            format!(
                "{} was written, but the store says that it has another length or CRC-32C",
                self.place(object)
            ),
        )
        .hint("nothing was committed; if it happens again, something between here and the store is broken")
    }

    /// Makes a new object of up to 32 others, which the server removes if it can. `crc32c` and `len` are what it must have.
    pub(super) async fn compose(
        &self,
        object: &str,
        sources: &[Component],
        len: u64,
        crc32c: u32,
    ) -> Result<Stored> {
        let source = |s: &Component| {
            let generation = s.stored.generation.to_string();
            json!({
                "name": s.name,
                "generation": generation,
                "objectPreconditions": { "ifGenerationMatch": generation },
            })
        };
        let body = json!({
            "sourceObjects": sources.iter().map(source).collect::<Vec<_>>(),
            "destination": { "contentType": "application/octet-stream" },
            "deleteSourceObjects": true,
        });
        let url = format!("{}/compose?ifGenerationMatch=0", self.object_url(object));
        let request = Request::mutation(
            Method::POST,
            url,
            "compose",
            "storage.objects.create, storage.objects.get and storage.objects.delete",
            object,
        )
        .with_body("application/json", Bytes::from(body.to_string()).into());
        let answer = match self.call_json(&request).await {
            Ok(answer) => answer,
            // If an earlier try was carried out, the object is there and its sources are not. Its name is used by one save only.
            Err((e, tries)) if tries > 1 && is_about_state(&e) => {
                self.get_metadata(object).await.map_err(|_| e)?
            }
            Err((e, _)) => return Err(e),
        };
        match answer.stored(len, crc32c)? {
            Some(stored) => Ok(stored),
            None => Err(self.stored_otherwise(object)),
        }
    }

    /// Removes an object, of that generation if one is given. What is not there need not be removed.
    pub(super) async fn delete(&self, object: &str, generation: Option<u64>) -> Result<()> {
        let mut url = self.object_url(object);
        if let Some(generation) = generation {
            url.push_str(&format!("?ifGenerationMatch={generation}"));
        }
        let request = Request::mutation(
            Method::DELETE,
            url,
            "delete",
            "storage.objects.delete",
            object,
        );
        match self.call(&request).await {
            Err((e, _)) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err((e, _)) => Err(e),
            Ok(_) => Ok(()),
        }
    }

    /// Whether there is an object of that name, as far as the caller may know.
    pub(super) async fn exists(&self, object: &str) -> Result<bool> {
        match self.get_metadata(object).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_absence() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Every object whose name begins with `prefix`.
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>> {
        let mut found = Vec::new();
        let mut page = String::new();
        loop {
            let mut url = format!("{}/o?prefix={}", self.bucket_url(), escaped(prefix));
            if !page.is_empty() {
                url.push_str(&format!("&pageToken={}", escaped(&page)));
            }
            let request = Request {
                action: "list",
                permission: "storage.objects.list",
                ..Request::get(url, prefix)
            };
            let answer = self.call_json(&request).await.map_err(|(e, _)| e)?;
            let items = answer.json["items"]
                .as_array()
                .map_or(&[][..], Vec::as_slice);
            for item in items {
                let Some(name) = item["name"].as_str().filter(|n| n.starts_with(prefix)) else {
                    continue;
                };
                let object = Answer {
                    json: item.clone(),
                    object: self.place(name),
                };
                found.push(ListedObject {
                    name: name.to_owned(),
                    len: object.resource_size()?,
                    generation: object.resource_generation()?,
                });
            }
            match answer.json["nextPageToken"].as_str() {
                None | Some("") => return Ok(found),
                Some(next) if next == page => {
                    return Err(Error::new(
                        ErrorKind::Store,
                        format!(
                            "the listing of {} goes round in circles",
                            self.place(prefix)
                        ),
                    ));
                }
                Some(next) => page = next.to_owned(),
            }
        }
    }
}

/// A CRC-32C as Google writes it: big-endian, in base64.
pub(super) fn decode_crc32c(text: &str) -> Option<u32> {
    let bytes = BASE64.decode(text).ok()?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Errors that say how things stand, and so may be the work of an earlier try.
fn is_about_state(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound)
}
