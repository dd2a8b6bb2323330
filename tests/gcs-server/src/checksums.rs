//! Checksums that clients send along with uploads.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderMap;

use crate::{
    content::Sums,
    error::{Refusal, Result},
    object::encode_crc32c,
};

/// What a client says the sums are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims {
    crc32c: Vec<String>,
    md5: Vec<String>,
}

impl Claims {
    /// `x-goog-hash` (several, or several in one) and `Content-MD5`.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self> {
        let mut claims = Self::default();
        for value in headers.get_all("x-goog-hash") {
            let value = value.to_str().unwrap_or("");
            for part in value.split(',').map(str::trim).filter(|p| !p.is_empty()) {
                match part.split_once('=') {
                    Some(("crc32c", sum)) => claims.crc32c.push(sum.into()),
                    Some(("md5", sum)) => claims.md5.push(sum.into()),
                    _ => {
                        return Err(Refusal::malformed(
                            "InvalidDigest",
                            format!("x-goog-hash: {part:?}"),
                        ));
                    }
                }
            }
        }
        if let Some(md5) = headers.get("content-md5") {
            claims.md5.push(md5.to_str().unwrap_or("").into());
        }
        Ok(claims)
    }

    /// The `crc32c` and `md5Hash` of an object resource.
    pub fn add_resource(&mut self, resource: &serde_json::Map<String, serde_json::Value>) {
        for (key, claims) in [("crc32c", &mut self.crc32c), ("md5Hash", &mut self.md5)] {
            if let Some(sum) = resource.get(key).and_then(|v| v.as_str()) {
                claims.push(sum.into());
            }
        }
    }

    pub fn add(&mut self, other: Self) {
        self.crc32c.extend(other.crc32c);
        self.md5.extend(other.md5);
    }

    /// Whether there is an MD5 to hold the content against.
    pub fn wants_md5(&self) -> bool {
        !self.md5.is_empty()
    }

    /// Refuses a content that is not what the client says. An MD5 is checked where one was computed.
    pub fn check(&self, sums: &Sums) -> Result<()> {
        let crc32c = encode_crc32c(sums.crc32c);
        for claimed in &self.crc32c {
            if *claimed != crc32c {
                return Err(Refusal::bad_digest("CRC32C", claimed, &crc32c));
            }
        }
        let Some(md5) = sums.md5.map(|md5| STANDARD.encode(md5)) else {
            return Ok(());
        };
        for claimed in &self.md5 {
            if *claimed != md5 {
                return Err(Refusal::bad_digest("MD5 hash", claimed, &md5));
            }
        }
        Ok(())
    }
}
