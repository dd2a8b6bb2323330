//! Who is asking: a token of the caller's, or what `object_store` finds (service account, application default credentials, the
//! metadata server of a virtual machine or of GKE's workload identity). Against an emulator nobody, unless credentials are named.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};
use object_store::{
    ClientOptions, RetryConfig,
    gcp::{GcpCredential, GcpCredentialProvider, GoogleCloudStorageBuilder},
};
use tokio::sync::Mutex;

use super::GcsOptions;
use crate::error::{Error, ErrorKind, Result};

/// Environment variables that name credentials.
const NAMES: [&str; 5] = [
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GCE_METADATA_HOST",
];

/// A bearer token of the caller's from the environment, by the name that gcloud uses.
const TOKEN: &str = "CLOUDSDK_AUTH_ACCESS_TOKEN";

/// Longest time that one try to fetch a token may take.
const TOKEN_TRY: Duration = Duration::from_secs(5);

/// By how much clocks may differ before it is worth saying. Google accepts some minutes.
const TOLERATED_CLOCK_ERROR: Duration = Duration::from_secs(120);

/// Where tokens come from.
#[derive(Debug)]
pub(super) enum Credentials {
    /// No token is sent.
    Nobody,
    /// The caller's token, for as long as it holds.
    Token(String),
    /// Tokens that are fetched, kept, and fetched again before they expire.
    Fetched {
        bucket: String,
        client_options: Box<ClientOptions>,
        /// Longest time that a token may take to come.
        patience: Duration,
        provider: Mutex<Provider>,
    },
}

/// What fetches tokens.
#[derive(Debug, Default)]
pub(super) struct Provider {
    /// `None` until it is needed, and after a token was refused.
    current: Option<GcpCredentialProvider>,
    /// Counts them: the token of an earlier one that is refused says nothing against the current one.
    number: u64,
}

/// What a request is sent with.
pub(super) struct Token {
    pub(super) bearer: Option<String>,
    /// The provider it came from.
    provider: u64,
}

impl Credentials {
    pub(super) fn find(
        bucket: &str,
        options: &GcsOptions,
        client_options: &ClientOptions,
        emulator: bool,
    ) -> Self {
        let token = options.bearer_token.clone().or_else(|| {
            std::env::var(TOKEN)
                .ok()
                .filter(|token| !token.trim().is_empty())
        });
        if let Some(token) = token {
            return Self::Token(token.trim().to_owned());
        }
        if emulator && NAMES.iter().all(|name| std::env::var_os(name).is_none()) {
            return Self::Nobody;
        }
        Self::Fetched {
            bucket: bucket.to_owned(),
            // A token is a short answer, so that its time can be bounded whole.
            client_options: Box::new(client_options.clone().with_timeout(TOKEN_TRY)),
            patience: options.retry.answer_timeout,
            provider: Mutex::default(),
        }
    }

    /// The token for the next request.
    pub(super) async fn token(&self) -> Result<Token> {
        let fixed = |bearer| Token {
            bearer,
            provider: 0,
        };
        match self {
            Self::Nobody => Ok(fixed(None)),
            Self::Token(token) => Ok(fixed(Some(token.clone()))),
            Self::Fetched {
                bucket,
                client_options,
                patience,
                provider,
            } => {
                let (provider, number) = {
                    let mut kept = provider.lock().await;
                    let current = match &kept.current {
                        Some(current) => current.clone(),
                        None => kept
                            .current
                            .insert(provider_of(bucket, client_options)?)
                            .clone(),
                    };
                    (current, kept.number)
                };
                let fetched = tokio::time::timeout(*patience, provider.get_credential()).await;
                let credential = fetched
                    .map_err(|_| none_found(format!("no token came in {} s", patience.as_secs())))?
                    .map_err(none_found)?;
                let GcpCredential { bearer, .. } = &*credential;
                Ok(Token {
                    bearer: (!bearer.is_empty()).then(|| bearer.clone()),
                    provider: number,
                })
            }
        }
    }

    /// This token was refused; whether another one can be had. Many requests may learn so of one token, which is replaced once.
    pub(super) async fn refused(&self, token: &Token) -> bool {
        match self {
            Self::Nobody | Self::Token(_) => false,
            Self::Fetched { provider, .. } => {
                let mut kept = provider.lock().await;
                if kept.number == token.provider {
                    kept.current = None;
                    kept.number += 1;
                }
                true
            }
        }
    }

    /// What can be done about a token that is not accepted, given the answer's headers.
    pub(super) fn advice(&self, headers: &HeaderMap) -> String {
        match self {
            Self::Nobody => {
                "no credentials were sent, for this is an emulator: name some, say in CLOUDSDK_AUTH_ACCESS_TOKEN".to_owned()
            }
            Self::Token(_) => "the token that was given has expired, was revoked or is of another account: give a new one, as `gcloud auth print-access-token` prints it, or none, so that tokens are fetched and renewed".to_owned(),
            Self::Fetched { .. } => match clock_error(headers, SystemTime::now()) {
                Some(error) => format!("{error}, and tokens are bound to the time: set the clock"),
                None => "a new token was refused as well: the account may be disabled, or its key deleted".to_owned(),
            },
        }
    }
}

/// How wrong this machine's clock is, if it is so wrong that a token which is made here may not be accepted.
fn clock_error(headers: &HeaderMap, now: SystemTime) -> Option<String> {
    let date = headers.get(header::DATE)?.to_str().ok()?;
    let theirs = httpdate::parse_http_date(date).ok()?;
    let (ahead, by) = match now.duration_since(theirs) {
        Ok(by) => ("ahead of", by),
        Err(e) => ("behind", e.duration()),
    };
    (by >= TOLERATED_CLOCK_ERROR).then(|| {
        format!(
            "this machine's clock is {} minutes {ahead} the store's",
            (by.as_secs() + 30) / 60
        )
    })
}

fn provider_of(bucket: &str, client_options: &ClientOptions) -> Result<GcpCredentialProvider> {
    let retry = RetryConfig {
        max_retries: 4,
        retry_timeout: Duration::from_secs(15),
        ..RetryConfig::default()
    };
    let store = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client_options.clone())
        .with_retry(retry)
        .build()
        .map_err(none_found)?;
    Ok(store.credentials().clone())
}

fn none_found(e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Forbidden, "no credentials for Google Cloud Storage can be had").because(e).hint(
        "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, give a token in CLOUDSDK_AUTH_ACCESS_TOKEN, or run where the metadata server has a service account",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_wrong_by_minutes_only() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let error = |theirs: SystemTime| {
            let mut headers = HeaderMap::new();
            let date = httpdate::fmt_http_date(theirs);
            headers.insert(header::DATE, date.parse().unwrap());
            clock_error(&headers, now)
        };
        let minutes = |n: u64| Duration::from_secs(60 * n);
        assert_eq!(error(now), None);
        assert_eq!(error(now + minutes(1)), None);
        assert_eq!(error(now - minutes(1)), None);
        assert!(
            error(now + minutes(61))
                .unwrap()
                .contains("61 minutes behind")
        );
        assert!(
            error(now - minutes(5))
                .unwrap()
                .contains("5 minutes ahead of")
        );
        assert_eq!(clock_error(&HeaderMap::new(), now), None);
    }
}
