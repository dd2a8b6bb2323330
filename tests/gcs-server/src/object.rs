//! An object as the bucket keeps it, and as the JSON API describes it.

use std::{collections::BTreeMap, time::SystemTime};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use crate::content::{Content, Sums};

/// What callers may say of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Metadata {
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub content_disposition: Option<String>,
    pub content_language: Option<String>,
    pub cache_control: Option<String>,
    pub storage_class: Option<String>,
    pub custom_time: Option<String>,
    pub event_based_hold: Option<bool>,
    pub temporary_hold: bool,
    pub custom: BTreeMap<String, String>,
}

impl Metadata {
    /// Takes over what a JSON object resource says; `null` removes.
    pub fn update(&mut self, resource: &Map<String, Value>) {
        for (key, field) in [
            ("contentType", &mut self.content_type),
            ("contentEncoding", &mut self.content_encoding),
            ("contentDisposition", &mut self.content_disposition),
            ("contentLanguage", &mut self.content_language),
            ("cacheControl", &mut self.cache_control),
            ("storageClass", &mut self.storage_class),
            ("customTime", &mut self.custom_time),
        ] {
            match resource.get(key) {
                Some(Value::String(text)) => *field = Some(text.clone()),
                Some(Value::Null) => *field = None,
                _ => {}
            }
        }
        if let Some(held) = resource.get("eventBasedHold").and_then(Value::as_bool) {
            self.event_based_hold = Some(held);
        }
        if let Some(held) = resource.get("temporaryHold").and_then(Value::as_bool) {
            self.temporary_hold = held;
        }
        match resource.get("metadata") {
            Some(Value::Null) => self.custom.clear(),
            Some(Value::Object(custom)) => {
                for (key, value) in custom {
                    match value {
                        Value::String(text) => self.custom.insert(key.clone(), text.clone()),
                        _ => self.custom.remove(key),
                    };
                }
            }
            _ => {}
        }
    }
}

/// A live or soft-deleted object.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub name: String,
    pub content: Content,
    pub sums: Sums,
    pub generation: i64,
    pub metageneration: i64,
    pub created: SystemTime,
    pub updated: SystemTime,
    pub metadata: Metadata,
    /// Of how many parts a composite was made.
    pub components: Option<u32>,
    /// Until when a retention policy keeps it.
    pub retained_until: Option<SystemTime>,
}

impl Object {
    pub fn len(&self) -> u64 {
        self.content.len()
    }

    pub fn storage_class(&self) -> &str {
        self.metadata.storage_class.as_deref().unwrap_or("STANDARD")
    }

    pub fn content_type(&self) -> &str {
        let given = self.metadata.content_type.as_deref();
        given.unwrap_or("application/octet-stream")
    }

    /// The JSON API's ETag: generation and metageneration as a protocol buffer.
    pub fn etag(&self) -> String {
        let mut bytes = vec![0x08];
        varint(&mut bytes, self.generation as u64);
        bytes.push(0x10);
        varint(&mut bytes, self.metageneration as u64);
        STANDARD.encode(bytes)
    }

    /// The XML API's ETag: the MD5 where there is one.
    pub fn xml_etag(&self) -> String {
        match self.sums.md5 {
            Some(md5) => format!("\"{}\"", hex(&md5)),
            None => format!("\"{}\"", self.etag()),
        }
    }

    /// The object resource.
    pub fn resource(&self, bucket: &str, base: &str) -> Value {
        let name = crate::request::encode(&self.name);
        let generation = self.generation;
        let mut resource = json!({
            "kind": "storage#object",
            "id": format!("{bucket}/{}/{generation}", self.name),
            "selfLink": format!("{base}/storage/v1/b/{bucket}/o/{name}"),
            "mediaLink": format!(
                "{base}/download/storage/v1/b/{bucket}/o/{name}?generation={generation}&alt=media"
            ),
            "name": self.name,
            "bucket": bucket,
            "generation": generation.to_string(),
            "metageneration": self.metageneration.to_string(),
            "contentType": self.content_type(),
            "storageClass": self.storage_class(),
            "size": self.len().to_string(),
            "crc32c": encode_crc32c(self.sums.crc32c),
            "etag": self.etag(),
            "timeCreated": timestamp(self.created),
            "updated": timestamp(self.updated),
            "timeStorageClassUpdated": timestamp(self.created),
            "timeFinalized": timestamp(self.created),
        });
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                resource[key] = value;
            }
        };
        let metadata = &self.metadata;
        set(
            "md5Hash",
            self.sums.md5.map(|md5| STANDARD.encode(md5).into()),
        );
        set("componentCount", self.components.map(Value::from));
        set(
            "contentEncoding",
            metadata.content_encoding.clone().map(Value::from),
        );
        set(
            "contentDisposition",
            metadata.content_disposition.clone().map(Value::from),
        );
        set(
            "contentLanguage",
            metadata.content_language.clone().map(Value::from),
        );
        set(
            "cacheControl",
            metadata.cache_control.clone().map(Value::from),
        );
        set("customTime", metadata.custom_time.clone().map(Value::from));
        set("eventBasedHold", metadata.event_based_hold.map(Value::from));
        set(
            "temporaryHold",
            metadata.temporary_hold.then_some(true.into()),
        );
        set(
            "retentionExpirationTime",
            self.retained_until.map(|t| timestamp(t).into()),
        );
        set(
            "metadata",
            (!metadata.custom.is_empty()).then(|| json!(metadata.custom)),
        );
        resource
    }
}

/// Base64 of a big-endian CRC-32C, as the service writes it.
pub(crate) fn encode_crc32c(crc32c: u32) -> String {
    STANDARD.encode(crc32c.to_be_bytes())
}

/// RFC 3339, with milliseconds.
pub(crate) fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
