//! What can be set, before the server starts and while it runs: buckets, who may do what, rules and the link.
//!
//! Everything here is plain data with defaults that are the strict ones, and serialises to JSON: a test changes it
//! through [`GcsServer::configure`](crate::GcsServer::configure), another process through `/_control/config`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::iam::{Grant, Permission};

/// The whole configuration of a server.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The buckets there are, by name. One that is taken out answers 404; its objects come back with it.
    pub buckets: BTreeMap<String, BucketConfig>,
    /// Who may call, and how they say who they are.
    pub access: Access,
    /// Rules that the service has and that a test may want to bend.
    pub rules: Rules,
    /// What the network between client and bucket is like.
    pub link: Link,
}

impl Config {
    /// A flat bucket without soft delete that everybody may use without a token: for what is not about permissions.
    pub fn open(bucket: &str) -> Self {
        let mut config = Self::closed(bucket);
        config.access.anonymous = Some(OWNER.into());
        config
    }

    /// The same bucket, for bearers of a token only. [`OWNER`] may do everything; its token is [`OWNER_TOKEN`].
    pub fn closed(bucket: &str) -> Self {
        let mut config = Self::default();
        config
            .buckets
            .insert(bucket.into(), BucketConfig::default());
        config
            .access
            .principals
            .insert(OWNER.into(), vec![Grant::everything()]);
        config
            .access
            .tokens
            .insert(OWNER_TOKEN.into(), OWNER.into());
        config.access.metadata_principal = Some(OWNER.into());
        config
    }

    /// A hierarchical bucket and a principal [`AGENT`] (token [`AGENT_TOKEN`]) that has, on the managed folder
    /// `folder` (ending in `/`), what a multi-tenant agent has: objects.get, create and delete, folders.create, and
    /// reading the bucket's metadata. No LIST, no multipart uploads.
    pub fn tenant(bucket: &str, folder: &str) -> Self {
        let mut config = Self::closed(bucket);
        let settings = config.buckets.get_mut(bucket).expect("just made");
        settings.hierarchical_namespace = true;
        settings.uniform_bucket_level_access = true;
        config
            .access
            .principals
            .insert(AGENT.into(), Grant::agent(bucket, folder));
        config
            .access
            .tokens
            .insert(AGENT_TOKEN.into(), AGENT.into());
        config.access.metadata_principal = Some(AGENT.into());
        config
    }

    /// The settings of a bucket, to change them.
    pub fn bucket(&mut self, name: &str) -> &mut BucketConfig {
        self.buckets.entry(name.into()).or_default()
    }

    /// Gives a principal one more right.
    pub fn grant(&mut self, principal: &str, grant: Grant) {
        let grants = self.access.principals.entry(principal.into()).or_default();
        grants.push(grant);
    }

    /// Takes a permission from a principal, wherever it had it.
    pub fn revoke(&mut self, principal: &str, permission: Permission) {
        for grant in self.access.principals.entry(principal.into()).or_default() {
            grant.permissions.retain(|p| *p != permission);
        }
    }
}

/// The principal that may do everything.
pub const OWNER: &str = "owner@podsnap-test.iam.gserviceaccount.com";
/// A token of [`OWNER`] that never expires.
pub const OWNER_TOKEN: &str = "owner-token";
/// The principal with an agent's rights.
pub const AGENT: &str = "agent@podsnap-test.iam.gserviceaccount.com";
/// A token of [`AGENT`] that never expires.
pub const AGENT_TOKEN: &str = "agent-token";

/// One bucket's settings: what `buckets.get` says, and what is enforced.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BucketConfig {
    /// `EU`, `US-EAST1`, ...
    pub location: String,
    /// `region`, `dual-region` or `multi-region`.
    pub location_type: String,
    /// Storage class of objects that name none.
    pub storage_class: String,
    /// Whether folders are resources. Changing it does not make folders for objects that are there.
    pub hierarchical_namespace: bool,
    /// Whether ACLs are refused.
    pub uniform_bucket_level_access: bool,
    /// How long deleted and overwritten objects are kept, and billed; 0 is off. Google's default is 604800.
    pub soft_delete_s: u64,
    /// Age below which objects are neither deleted nor overwritten.
    pub retention_s: Option<u64>,
    /// Whether new objects are held until somebody releases them.
    pub default_event_based_hold: bool,
    /// The `lifecycle` field of `buckets.get`; reported, not carried out.
    pub lifecycle: Option<serde_json::Value>,
    /// The bucket's labels.
    pub labels: BTreeMap<String, String>,
}

impl Default for BucketConfig {
    fn default() -> Self {
        Self {
            location: "US-EAST1".into(),
            location_type: "region".into(),
            storage_class: "STANDARD".into(),
            hierarchical_namespace: false,
            uniform_bucket_level_access: true,
            soft_delete_s: 0,
            retention_s: None,
            default_event_based_hold: false,
            lifecycle: None,
            labels: BTreeMap::new(),
        }
    }
}

/// Who may call.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// Whom a request without Authorization speaks for; without one, such requests get 401.
    pub anonymous: Option<String>,
    /// What principals (by email) may do.
    pub principals: BTreeMap<String, Vec<Grant>>,
    /// Bearer tokens that never expire, and whose they are.
    pub tokens: BTreeMap<String, String>,
    /// OAuth refresh tokens, and whose they are.
    pub refresh_tokens: BTreeMap<String, String>,
    /// Whom the metadata server and tokens from it speak for; without one it answers 404.
    pub metadata_principal: Option<String>,
    /// Lifetime of tokens from `/token` and from the metadata server.
    pub token_ttl_ms: u64,
    /// Lifetime that clients are told instead of the true one.
    pub stated_token_ttl_ms: Option<u64>,
    /// The project that the metadata server names.
    pub project: String,
    /// The zone that the metadata server names.
    pub zone: String,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            anonymous: None,
            principals: BTreeMap::new(),
            tokens: BTreeMap::new(),
            refresh_tokens: BTreeMap::new(),
            metadata_principal: None,
            token_ttl_ms: 3_600_000,
            stated_token_ttl_ms: None,
            project: "podsnap-test".into(),
            zone: "us-east1-b".into(),
        }
    }
}

/// Rules that can be bent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Mutations per second of one object name before 429; 0 turns the rule off. The service promises 1.
    pub mutations_per_second: f64,
    /// Mutations of one name that may come at once. Strictly 1; the service itself often bears some more.
    pub mutation_burst: u32,
    /// Answer to a GET of a missing object from somebody without objects.list: 403 or 404. Which of the two the
    /// service gives is not established; a client must bear either.
    pub missing_without_list: u16,
    /// Whether objects that are not composites get an MD5, as they do in the service. It costs more than all else
    /// here, so measurements turn it off.
    pub md5: bool,
    /// Bytes of content held at most; an upload beyond answers 507. 0 is no limit.
    pub memory_limit_bytes: u64,
    /// Downloads under way at once before 429; 0 is no limit. The service throttles by quotas that it does not tell: this is
    /// what a client notices of them.
    pub downloads_at_once: u64,
    /// How far the server's clock is ahead of this machine's, in seconds: in the `Date` of its answers, and where it judges JWTs.
    pub clock_ahead_s: i64,
    /// Requests that the log keeps; the oldest go first. Counts are of all.
    pub log_limit: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            mutations_per_second: 1.0,
            mutation_burst: 1,
            missing_without_list: 403,
            md5: true,
            memory_limit_bytes: 0,
            downloads_at_once: 0,
            clock_ahead_s: 0,
            log_limit: 1_000_000,
        }
    }
}

/// The network. Zero is no limit.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Link {
    /// From the last byte of a request to the first of its answer.
    pub first_byte_ms: u64,
    /// Bytes per second of one connection, in each direction.
    pub stream_bytes_per_s: u64,
    /// Bytes per second of all connections together, in each direction.
    pub total_bytes_per_s: u64,
}
