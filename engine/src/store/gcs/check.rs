//! All that can be found out about a bucket before it is relied on: its settings, its location, and what the caller may do there.

use tokio_util::sync::CancellationToken;

use super::{
    GcsBackend,
    bucket::{self, Bucket, Finding},
    location,
    permissions::{self, Access, Permission},
};
use crate::error::{Error, ErrorKind, Result};

/// What a check of a bucket found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BucketCheck {
    /// The path that was checked.
    pub store: String,
    /// The bucket's settings, if they may be read.
    pub bucket: Option<Bucket>,
    /// The region of this machine, if it is one of Google's.
    pub region: Option<String>,
    /// What the caller may do.
    pub permissions: Vec<Permission>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

impl BucketCheck {
    /// Whether nothing is wrong that slows, breaks or wastes saves.
    pub fn is_fine(&self) -> bool {
        self.findings.iter().all(|f| !f.slows_saves)
    }
}

impl GcsBackend {
    /// Looks at the bucket's settings and tries out what the caller may do below the store's path. What has to be written for that is
    /// removed again, also when this is cancelled. The store's own folder in a hierarchical bucket may come into being.
    ///
    /// Refusals are findings; a bucket that does not exist or does not answer, or a token that is not accepted, is an error.
    ///
    /// ```no_run
    /// # use podsnap_engine as podsnap;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use podsnap::{CancellationToken, store::{GcsBackend, GcsOptions}};
    ///
    /// let backend = GcsBackend::open("gs://snapshots/tenant-7", GcsOptions::default())?;
    /// let check = backend.check(&CancellationToken::new()).await?;
    /// for finding in &check.findings {
    ///     println!("{finding}");
    /// }
    /// assert!(check.is_fine());
    /// # Ok(()) }
    /// ```
    pub async fn check(&self, cancel: &CancellationToken) -> Result<BucketCheck> {
        let looked = async { tokio::join!(self.bucket(), location::region()) };
        let (settings, region) = tokio::select! {
            looked = looked => looked,
            () = cancel.cancelled() => return Err(Error::interrupted()),
        };
        let (bucket, refused) = match settings {
            Ok(bucket) => (Some(bucket), None),
            Err(e) if e.kind() == ErrorKind::Forbidden && e.to_string().contains("(403: ") => {
                (None, Some(bucket::unknown(self.client.bucket(), &e)))
            }
            Err(e) => return Err(e),
        };
        let mut tried = permissions::try_out(self, bucket.as_ref(), cancel).await?;
        tried.note(
            "storage.buckets.get",
            "knowing whether the bucket is fast",
            false,
            match bucket {
                Some(_) => Access::Granted,
                None => Access::Refused,
            },
        );
        let of_settings = bucket.iter().flat_map(Bucket::findings);
        let of_location = bucket
            .iter()
            .zip(&region)
            .filter_map(|(b, r)| location::finding(b, r));
        let findings = tried.findings.into_iter().chain(refused);
        Ok(BucketCheck {
            store: self.client.place(&self.prefix),
            findings: findings.chain(of_settings).chain(of_location).collect(),
            bucket,
            region,
            permissions: tried.permissions,
        })
    }
}

/// The commands that make a bucket as snapshots want it, and let somebody use one path of it, each with what it is for.
pub fn setup_commands(bucket: &str, location: &str, path: &str) -> Vec<(&'static str, String)> {
    vec![
        ("the bucket", bucket::create_command(bucket, location)),
        (
            "a rule that removes parts which a crashed save left",
            bucket::lifecycle_command(bucket),
        ),
        (
            "a role of what saving and restoring need, once for a project",
            permissions::role_command().to_owned(),
        ),
        (
            "that role for whoever saves and restores",
            permissions::grant_command(bucket, path, "PRINCIPAL"),
        ),
        (
            "the right to see whether the bucket is as fast as it can be",
            format!(
                "gcloud storage buckets add-iam-policy-binding {} --member=PRINCIPAL --role=roles/storage.bucketViewer",
                bucket::shell_word(&format!("gs://{bucket}"))
            ),
        ),
    ]
}
