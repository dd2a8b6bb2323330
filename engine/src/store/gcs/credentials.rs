//! Who is asking: a token of the caller's, or what `object_store` finds (service account, application default credentials, the
//! metadata server of a virtual machine or of GKE's workload identity). Against an emulator nobody, unless credentials are named.

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
        /// `None` until it is needed, and after a token was refused.
        provider: Mutex<Option<GcpCredentialProvider>>,
    },
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
            client_options: Box::new(client_options.clone()),
            provider: Mutex::new(None),
        }
    }

    /// The token for the next request.
    pub(super) async fn token(&self) -> Result<Option<String>> {
        match self {
            Self::Nobody => Ok(None),
            Self::Token(token) => Ok(Some(token.clone())),
            Self::Fetched {
                bucket,
                client_options,
                provider,
            } => {
                let provider = {
                    let mut kept = provider.lock().await;
                    match &*kept {
                        Some(provider) => provider.clone(),
                        None => kept.insert(provider_of(bucket, client_options)?).clone(),
                    }
                };
                let credential = provider.get_credential().await.map_err(none_found)?;
                let GcpCredential { bearer, .. } = &*credential;
                Ok((!bearer.is_empty()).then(|| bearer.clone()))
            }
        }
    }

    /// The last token was refused; whether another one can be had.
    pub(super) async fn refused(&self) -> bool {
        match self {
            Self::Nobody | Self::Token(_) => false,
            Self::Fetched { provider, .. } => {
                *provider.lock().await = None;
                true
            }
        }
    }
}

fn provider_of(bucket: &str, client_options: &ClientOptions) -> Result<GcpCredentialProvider> {
    let retry = RetryConfig {
        max_retries: 4,
        retry_timeout: std::time::Duration::from_secs(15),
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

fn none_found(e: object_store::Error) -> Error {
    Error::new(ErrorKind::Forbidden, "no credentials for Google Cloud Storage can be had").because(e).hint(
        "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, give a token in CLOUDSDK_AUTH_ACCESS_TOKEN, or run where the metadata server has a service account",
    )
}
