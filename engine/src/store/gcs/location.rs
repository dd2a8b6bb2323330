//! Where a bucket lies and where this machine does: bytes between two regions are slow and billed.

use std::{fs, time::Duration};

use bytes::BytesMut;
use futures::StreamExt;
use object_store::{
    ClientOptions,
    client::{HttpConnector, HttpRequestBody, ReqwestConnector},
};

use super::bucket::{Bucket, Finding, create_command};

/// Names the metadata server where it is not the usual one.
const METADATA_HOST: &str = "GCE_METADATA_HOST";

/// Time for the metadata server, which is one hop away, or nowhere.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the metadata server says is never longer than this, in bytes.
const MAX_ANSWER_LEN: usize = 256;

/// Dual-regions that Google put together (cloud.google.com/storage/docs/locations).
const DUAL_REGIONS: [(&str, [&str; 2]); 6] = [
    ("ASIA1", ["ASIA-NORTHEAST1", "ASIA-NORTHEAST2"]),
    ("EUR4", ["EUROPE-NORTH1", "EUROPE-WEST4"]),
    ("EUR5", ["EUROPE-WEST1", "EUROPE-WEST2"]),
    ("EUR7", ["EUROPE-WEST2", "EUROPE-WEST3"]),
    ("EUR8", ["EUROPE-WEST3", "EUROPE-WEST6"]),
    ("NAM4", ["US-CENTRAL1", "US-EAST1"]),
];

/// Regions in Europe that the multi-region EU does not use: London and Zurich.
const NOT_IN_EU: [&str; 2] = ["EUROPE-WEST2", "EUROPE-WEST6"];

/// The region of this machine, in lower case, if it is a machine of Google's and can be asked.
pub(super) async fn region() -> Option<String> {
    let host = std::env::var(METADATA_HOST).unwrap_or_default();
    let host = match host.is_empty() {
        true => "metadata.google.internal",
        false => &host,
    };
    tokio::time::timeout(PATIENCE, ask(host)).await.ok()?
}

/// The same, but nobody is asked on a machine that does not look like one of Google's: a save has no time for that.
pub(super) async fn region_if_google() -> Option<String> {
    let named = std::env::var_os(METADATA_HOST).is_some_and(|host| !host.is_empty());
    let product = || fs::read_to_string("/sys/class/dmi/id/product_name").unwrap_or_default();
    match named || product().starts_with("Google") {
        true => region().await,
        false => None,
    }
}

async fn ask(host: &str) -> Option<String> {
    let options = ClientOptions::new()
        .with_http1_only()
        .with_allow_http(true)
        .with_connect_timeout(PATIENCE)
        .with_timeout(PATIENCE);
    let http = ReqwestConnector::default().connect(&options).ok()?;
    let request = http::Request::get(format!("http://{host}/computeMetadata/v1/instance/zone"))
        .header("Metadata-Flavor", "Google")
        .body(HttpRequestBody::empty())
        .ok()?;
    let response = http.execute(request).await.ok()?;
    if !response.status().is_success() {
        return None;
    }
    let mut body = response.into_body().bytes_stream();
    let mut answer = BytesMut::new();
    while let Some(bytes) = body.next().await {
        answer.extend_from_slice(&bytes.ok()?);
        if answer.len() > MAX_ANSWER_LEN {
            return None;
        }
    }
    region_of(std::str::from_utf8(&answer).ok()?)
}

/// The region of `projects/NUMBER/zones/REGION-LETTER`.
fn region_of(zone: &str) -> Option<String> {
    let (region, letter) = zone.trim().rsplit('/').next()?.rsplit_once('-')?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (!letter.is_empty() && region.contains('-') && region.chars().all(plain))
        .then(|| region.to_owned())
}

/// Whether the bucket has its objects in that region; `None` where its location's name is not known.
fn holds(bucket: &Bucket, region: &str) -> Option<bool> {
    let region = region.to_ascii_uppercase();
    let is_it = |r: &str| r == region;
    if !bucket.data_locations.is_empty() {
        return Some(bucket.data_locations.iter().any(|r| is_it(r)));
    }
    let location = bucket.location.as_str();
    if let Some((_, regions)) = DUAL_REGIONS.iter().find(|(name, _)| *name == location) {
        return Some(regions.iter().any(|r| is_it(r)));
    }
    match location {
        "US" => Some(region.starts_with("US-")),
        "ASIA" => Some(region.starts_with("ASIA-")),
        "EU" => Some(region.starts_with("EUROPE-") && !NOT_IN_EU.contains(&region.as_str())),
        name if name.contains('-') => Some(is_it(name)),
        _ => None,
    }
}

/// What is wrong with a bucket that is not where `region` is.
pub(super) fn finding(bucket: &Bucket, region: &str) -> Option<Finding> {
    if holds(bucket, region) != Some(false) {
        return None;
    }
    Some(Finding {
        kind: "other-region",
        problem: format!(
            "gs://{} lies in {}, this machine in {region}: every byte is slow and billed. This can only be chosen for a new bucket",
            bucket.name, bucket.location
        ),
        command: Some(create_command("NEW-BUCKET", region)),
        slows_saves: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(location: &str, data_locations: &[&str]) -> Bucket {
        Bucket {
            name: "b".into(),
            location: location.into(),
            location_type: String::new(),
            data_locations: data_locations.iter().map(|l| l.to_string()).collect(),
            storage_class: "STANDARD".into(),
            hierarchical_namespace: true,
            soft_delete_s: 0,
            uniform_access: true,
            retention_s: None,
            default_hold: false,
            removes_parts: true,
            lifecycle_rules: 1,
        }
    }

    #[test]
    fn a_bucket_of_several_regions_is_near_each_of_them() {
        for (location, region, near) in [
            ("US-EAST1", "us-east1", Some(true)),
            ("US-EAST1", "us-east4", Some(false)),
            ("US", "us-central1", Some(true)),
            ("US", "northamerica-northeast1", Some(false)),
            ("EU", "europe-west4", Some(true)),
            ("EU", "europe-west2", Some(false)),
            ("EUR5", "europe-west2", Some(true)),
            ("NAM4", "us-central1", Some(true)),
            ("NAM4", "us-west1", Some(false)),
            ("XYZ9", "us-west1", None),
            ("", "us-west1", None),
        ] {
            let bucket = bucket(location, &[]);
            assert_eq!(holds(&bucket, region), near, "{region} in {location}");
        }
        let own = bucket("US", &["US-EAST4", "US-WEST1"]);
        assert_eq!(holds(&own, "us-west1"), Some(true));
        assert_eq!(holds(&own, "us-east1"), Some(false));
    }

    #[test]
    fn a_zone_is_its_region_and_a_letter() {
        let region = |zone| region_of(zone);
        assert_eq!(
            region("projects/1/zones/us-east1-b\n").as_deref(),
            Some("us-east1")
        );
        for nonsense in ["", "us", "us-", "a b-c-d", "<html>x-y-z</html>", "zones/b"] {
            assert_eq!(region(nonsense), None, "{nonsense:?}");
        }
    }
}
