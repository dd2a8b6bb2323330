//! Answers that say no, as the service words them: JSON, XML, or plain text for JSON media downloads.

use http::StatusCode;
use serde_json::json;

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Status of the answer.
    pub status: StatusCode,
    /// JSON's `reason`.
    pub reason: &'static str,
    /// XML's `Code`.
    pub code: &'static str,
    /// What is said to people.
    pub message: String,
    /// Seconds for `Retry-After`.
    pub retry_after: Option<u64>,
}

/// What a handler answers, or refuses with.
pub type Result<T> = std::result::Result<T, Refusal>;

/// In which of the service's three dialects to refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The JSON API.
    Json,
    /// The JSON API's media downloads, which refuse in plain text.
    Text,
    /// The XML API.
    Xml,
}

impl Refusal {
    fn new(status: u16, reason: &'static str, code: &'static str, message: String) -> Self {
        Self {
            status: StatusCode::from_u16(status).expect("a status"),
            reason,
            code,
            message,
            retry_after: None,
        }
    }

    /// 400.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid", "InvalidArgument", message.into())
    }

    /// 400, for a checksum that is not the content's.
    pub fn bad_digest(kind: &str, said: &str, found: &str) -> Self {
        let message =
            format!("Provided {kind} \"{said}\" doesn't match calculated {kind} \"{found}\".");
        Self::new(400, "invalid", "BadDigest", message)
    }

    /// 400, with an XML code of its own.
    pub fn malformed(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(400, "invalid", code, message.into())
    }

    /// 401, for a token that is unknown or has expired.
    pub fn bad_token() -> Self {
        let message = "Invalid Credentials".into();
        Self::new(401, "authError", "AuthenticationRequired", message)
    }

    /// 401, for no token at all.
    pub fn anonymous(permission: &str) -> Self {
        let message = format!(
            "Anonymous caller does not have {permission} access to the Google Cloud Storage object. \
             Permission '{permission}' denied on resource (or it may not exist)."
        );
        Self::new(401, "required", "AuthenticationRequired", message)
    }

    /// 403, for a permission that the caller lacks.
    pub fn denied(who: &str, permission: &str) -> Self {
        let message = format!(
            "{who} does not have {permission} access to the Google Cloud Storage object. \
             Permission '{permission}' denied on resource (or it may not exist)."
        );
        Self::new(403, "forbidden", "AccessDenied", message)
    }

    /// 403, for an object that a policy keeps.
    pub fn kept(reason: &'static str, message: String) -> Self {
        Self::new(403, reason, "AccessDenied", message)
    }

    /// 404 of a bucket.
    pub fn no_bucket() -> Self {
        let message = "The specified bucket does not exist.".into();
        Self::new(404, "notFound", "NoSuchBucket", message)
    }

    /// 404 of an object.
    pub fn no_object(bucket: &str, name: &str) -> Self {
        let message = format!("No such object: {bucket}/{name}");
        Self::new(404, "notFound", "NoSuchKey", message)
    }

    /// 404 of anything else.
    pub fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(404, "notFound", code, message.into())
    }

    /// 409.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, "conflict", "Conflict", message.into())
    }

    /// 412 of a precondition.
    pub fn condition_not_met() -> Self {
        let message = "At least one of the pre-conditions you specified did not hold.".into();
        Self::new(412, "conditionNotMet", "PreconditionFailed", message)
    }

    /// 416.
    pub fn range_not_satisfiable() -> Self {
        let message = "The requested range cannot be satisfied.".into();
        Self::new(416, "requestedRangeNotSatisfiable", "InvalidRange", message)
    }

    /// 429 of the rule of one mutation per second.
    pub fn slow_down(bucket: &str, name: &str) -> Self {
        let message = format!(
            "The object {bucket}/{name} exceeded the rate limit for object mutation operations \
             (create, update, and delete). Please reduce your request rate."
        );
        Self::new(429, "rateLimitExceeded", "SlowDown", message)
    }

    /// 507: nothing that the service says, but this server's memory is bounded.
    pub fn out_of_memory() -> Self {
        let message = "the test server's memory limit is reached".into();
        Self::new(507, "backendError", "InternalError", message)
    }

    /// Any status, on request.
    pub fn injected(status: u16, retry_after: Option<u64>) -> Self {
        let (reason, code) = match status {
            401 => ("authError", "AuthenticationRequired"),
            403 => ("forbidden", "AccessDenied"),
            404 => ("notFound", "NoSuchKey"),
            408 => ("requestTimeout", "RequestTimeout"),
            412 => ("conditionNotMet", "PreconditionFailed"),
            429 => ("rateLimitExceeded", "SlowDown"),
            503 => ("backendError", "ServiceUnavailable"),
            _ => ("backendError", "InternalError"),
        };
        let message = "We encountered an internal error. Please try again.".into();
        Self {
            retry_after,
            ..Self::new(status, reason, code, message)
        }
    }

    /// Content type and body of the refusal.
    pub fn body(&self, dialect: Dialect) -> (&'static str, String) {
        match dialect {
            Dialect::Json => {
                let mut error = json!({
                    "message": self.message, "domain": "global", "reason": self.reason,
                });
                match self.status.as_u16() {
                    412 => {
                        error["locationType"] = "header".into();
                        error["location"] = "If-Match".into();
                    }
                    401 => {
                        error["locationType"] = "header".into();
                        error["location"] = "Authorization".into();
                    }
                    _ => {}
                }
                let body = json!({"error": {
                    "code": self.status.as_u16(), "message": self.message, "errors": [error],
                }});
                ("application/json; charset=UTF-8", body.to_string())
            }
            Dialect::Text => ("text/html; charset=UTF-8", self.message.clone()),
            Dialect::Xml => {
                let body = format!(
                    "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>{}</Message></Error>",
                    self.code,
                    crate::xml::escape(&self.message)
                );
                ("application/xml; charset=UTF-8", body)
            }
        }
    }
}
