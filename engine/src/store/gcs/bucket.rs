//! The bucket's own settings, and what is wrong with them for snapshots: each finding with the command that mends it.

use std::fmt;

use serde_json::Value;

use super::client::{Client, Request};
use crate::error::{Error, Result};

/// What `buckets.get` says of a bucket, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// Region or multi-region, in upper case.
    pub location: String,
    /// `region`, `dual-region` or `multi-region`.
    pub location_type: String,
    /// Regions of a dual-region that its owner put together, in upper case.
    pub data_locations: Vec<String>,
    /// Class of objects that name none.
    pub storage_class: String,
    /// Whether folders are resources, which takes eight times the rate of requests.
    pub hierarchical_namespace: bool,
    /// How long deleted objects are kept and billed, in seconds; 0 if they are not.
    pub soft_delete_s: u64,
    /// Whether access is ruled by IAM alone.
    pub uniform_access: bool,
    /// Age in seconds below which objects can be neither deleted nor replaced.
    pub retention_s: Option<u64>,
    /// Whether new objects are held.
    pub default_hold: bool,
    /// Whether a lifecycle rule removes parts that a crash left behind.
    pub removes_parts: bool,
    /// Number of lifecycle rules.
    pub lifecycle_rules: usize,
}

/// Something about a bucket that its owner should know.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// For programs; stable.
    pub kind: &'static str,
    /// What is wrong and what it costs.
    pub problem: String,
    /// The command that mends it.
    pub command: Option<String>,
    /// Whether it makes saves slow, expensive or impossible, and so is said at the start of each.
    pub slows_saves: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)?;
        match &self.command {
            Some(command) => write!(f, ": {command}"),
            None => Ok(()),
        }
    }
}

/// Reads the bucket's settings, which needs `storage.buckets.get`.
pub(super) async fn get(client: &Client) -> Result<Bucket> {
    let request = Request {
        action: "read the settings of",
        permission: "storage.buckets.get",
        ..Request::get(client.bucket_url(), "")
    };
    let answer = client.call_json(&request).await.map_err(|(e, _)| e)?;
    Ok(parse(client.bucket(), &answer.json))
}

fn parse(name: &str, json: &Value) -> Bucket {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let seconds = |value: &Value| -> Option<u64> {
        let as_text = value.as_str().and_then(|s| s.parse().ok());
        as_text.or_else(|| value.as_u64())
    };
    let flag = |value: &Value| value.as_bool().unwrap_or(false);
    let rules = json["lifecycle"]["rule"].as_array();
    let removes_parts = rules.is_some_and(|rules| {
        rules.iter().any(|rule| {
            let suffixes = rule["condition"]["matchesSuffix"].as_array();
            rule["action"]["type"] == "Delete"
                && suffixes.is_some_and(|s| s.iter().any(|s| s == super::upload::PART_SUFFIX))
        })
    });
    let data_locations = json["customPlacementConfig"]["dataLocations"].as_array();
    Bucket {
        name: name.to_owned(),
        location: place(&json["location"]).unwrap_or_default(),
        location_type: text(&json["locationType"]),
        data_locations: data_locations
            .into_iter()
            .flatten()
            .filter_map(place)
            .collect(),
        storage_class: text(&json["storageClass"]),
        hierarchical_namespace: flag(&json["hierarchicalNamespace"]["enabled"]),
        soft_delete_s: seconds(&json["softDeletePolicy"]["retentionDurationSeconds"]).unwrap_or(0),
        uniform_access: flag(&json["iamConfiguration"]["uniformBucketLevelAccess"]["enabled"]),
        retention_s: seconds(&json["retentionPolicy"]["retentionPeriod"]),
        default_hold: flag(&json["defaultEventBasedHold"]),
        removes_parts,
        lifecycle_rules: rules.map_or(0, Vec::len),
    }
}

/// A location's name. It becomes part of commands that people run, so whatever does not look like one is none.
fn place(value: &Value) -> Option<String> {
    let name = value.as_str()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (name.len() <= 64 && name.chars().all(plain)).then(|| name.to_ascii_uppercase())
}

/// The finding of a bucket whose settings cannot be read.
pub(super) fn unknown(bucket: &str, why: &Error) -> Finding {
    Finding {
        kind: "unknown-settings",
        problem: format!(
            "the settings of gs://{bucket} cannot be read, so it is not known whether saves are as fast as they can be ({why}); let the agent read them"
        ),
        command: Some(format!(
            "gcloud storage buckets add-iam-policy-binding gs://{} --member={} --role=roles/storage.bucketViewer",
            shell_word(bucket),
            super::permissions::principal(&why.to_string())
        )),
        slows_saves: true,
    }
}

/// The command that makes a bucket as snapshots want it.
///
/// ```
/// # use podsnap_engine as podsnap;
/// use podsnap::store::gcs::bucket::create_command;
///
/// let command = create_command("snapshots", "us-east1");
/// assert!(command.starts_with("gcloud storage buckets create gs://snapshots --location=us-east1 "));
/// ```
pub fn create_command(bucket: &str, location: &str) -> String {
    let (bucket, location) = (shell_word(bucket), shell_word(location));
    format!(
        "gcloud storage buckets create gs://{bucket} --location={location} --default-storage-class=STANDARD --uniform-bucket-level-access --enable-hierarchical-namespace --soft-delete-duration=0"
    )
}

/// The command that lets a bucket remove the parts that crashed saves left, once they are two days old. It replaces all rules there are.
pub fn lifecycle_command(bucket: &str) -> String {
    let bucket = shell_word(bucket);
    let rule = format!(
        r#"{{"rule":[{{"action":{{"type":"Delete"}},"condition":{{"age":2,"matchesSuffix":["{}"]}}}}]}}"#,
        super::upload::PART_SUFFIX
    );
    format!(
        "echo '{rule}' > parts.json && gcloud storage buckets update gs://{bucket} --lifecycle-file=parts.json"
    )
}

/// `text` as one word of a shell's command line.
pub(super) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

impl Bucket {
    /// Whether parts of packs could be removed again.
    pub(crate) fn can_remove_parts(&self) -> bool {
        self.retention_s.is_none() && !self.default_hold
    }

    /// What is wrong with the bucket, the most expensive first.
    pub fn findings(&self) -> Vec<Finding> {
        let bucket = &self.name;
        let mut findings = Vec::new();
        let mut add = |kind, slows_saves, problem: String, command: String| {
            findings.push(Finding {
                kind,
                problem,
                command: Some(command),
                slows_saves,
            });
        };
        let update = |option: &str| {
            format!(
                "gcloud storage buckets update gs://{} {option}",
                shell_word(bucket)
            )
        };
        if let Some(seconds) = self.retention_s {
            add(
                "retention-policy",
                true,
                format!(
                    "gs://{bucket} retains objects for {seconds} s: leases cannot be dropped, snapshots not deleted, and packs are uploaded in one stream because their parts could not be removed. Clear the policy"
                ),
                update("--clear-retention-period"),
            );
        }
        if self.default_hold {
            add(
                "default-hold",
                true,
                format!(
                    "gs://{bucket} holds every new object: leases cannot be dropped, snapshots not deleted, and packs are uploaded in one stream because their parts could not be removed. Clear the default"
                ),
                update("--no-default-event-based-hold"),
            );
        }
        if !self.hierarchical_namespace {
            add(
                "flat-namespace",
                true,
                format!(
                    "gs://{bucket} has no hierarchical namespace: it takes an eighth of the requests per second at first. This can only be chosen for a new bucket"
                ),
                create_command("NEW-BUCKET", &self.location.to_lowercase()),
            );
        }
        if self.soft_delete_s > 0 {
            add(
                "soft-delete",
                true,
                format!(
                    "gs://{bucket} keeps deleted objects for {} days and bills them. Turn soft delete off",
                    self.soft_delete_s.div_ceil(86_400)
                ),
                update("--clear-soft-delete"),
            );
        }
        if self.storage_class != "STANDARD" {
            add(
                "storage-class",
                true,
                format!(
                    "gs://{bucket} stores objects as {}: reading and deleting early are billed. New objects should be STANDARD",
                    self.storage_class
                ),
                update("--default-storage-class=STANDARD"),
            );
        }
        if !self.uniform_access {
            add(
                "fine-grained-access",
                false,
                format!(
                    "gs://{bucket} has access control lists on objects, and so no managed folders to keep tenants apart"
                ),
                update("--uniform-bucket-level-access"),
            );
        }
        if !self.removes_parts {
            let others = match self.lifecycle_rules {
                0 => "",
                _ => ". The command replaces the rules it has: add those to the file",
            };
            add(
                "no-lifecycle",
                false,
                format!(
                    "gs://{bucket} has no lifecycle rule for parts that a crashed save leaves and that no later save of the same id removes{others}"
                ),
                lifecycle_command(bucket),
            );
        }
        findings
    }
}
