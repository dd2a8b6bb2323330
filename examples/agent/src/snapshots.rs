//! What a pod's policy means for it: the store, the group that its snapshots belong to, the one it starts from, and where it saves itself to.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use podsnap::{
    Catalog, NAMESPACE_LABEL, OpenOptions, POLICY_LABEL, Requirements, Snapshot, SnapshotId, State,
    Store,
    policy::{
        AfterCheckpoint, Pod, PodSnapshotPolicy, PodSnapshotStorageConfig, Resources, TriggerType,
    },
};
use serde_json::{Value, json};

use crate::node::Node;

/// A pod under a policy. It stays under it until it ends, whatever becomes of the policy.
pub struct Snapshotted {
    node: Arc<Node>,
    pod: Pod,
    policy: PodSnapshotPolicy,
    storage: PodSnapshotStorageConfig,
    requirements: Requirements,
    group: String,
}

impl Snapshotted {
    /// Finds out; nothing if no policy is for the pod.
    pub fn of(node: &Arc<Node>, resources: &Resources, pod: &Pod) -> Result<Option<Self>, String> {
        let Some(policy) = resources.policy_for(pod) else {
            return Ok(None);
        };
        let storage = resources.storage_of(policy).map_err(|e| e.to_string())?;
        let grouping = policy.grouping_of(&pod.metadata.labels).map_err(|labels| {
            let (name, labels) = (&policy.metadata.name, labels.join(", "));
            format!("the policy {name} groups by labels that the pod does not have: {labels}")
        })?;
        let mut requirements =
            Requirements::of_this_node(&pod.distilled_spec(), &node.runsc_version);
        requirements.grouping = grouping;
        let name = &policy.metadata;
        Ok(Some(Self {
            node: node.clone(),
            pod: pod.clone(),
            policy: policy.clone(),
            storage: storage.clone(),
            group: requirements.group(&name.namespace, &name.name),
            requirements,
        }))
    }

    /// The store, with the token that the pod has now: tokens last for an hour, pods for longer.
    fn store(&self) -> Result<Store, String> {
        let mut options = OpenOptions::default();
        options.gcs.bearer_token = self.node.token(&self.pod)?;
        let store = Store::open_with(&self.storage.store_url(), &options, None);
        store.map_err(|e| format!("{}: {e}", self.storage.file.display()))
    }

    /// The snapshot that the pod starts from: the one it asks for, or the newest that fits.
    pub async fn find(&self) -> Result<Option<Snapshot>, String> {
        let catalog = Catalog::new(&self.store()?);
        let found = match self.pod.pinned_snapshot() {
            None => catalog.newest(&self.group).await,
            Some(id) => {
                let parsed: Result<SnapshotId, _> = id.parse();
                let id = parsed.map_err(|e| format!("{id:?} is no PodSnapshot: {e}"))?;
                catalog.pinned(&id, &self.requirements).await.map(Some)
            }
        };
        let Some(snapshot) = found.map_err(|e| e.to_string())? else {
            return Ok(None);
        };
        let begun = catalog.begin_restore(snapshot.id()).await;
        begun.map(Some).map_err(|e| e.to_string())
    }

    /// An image path that makes runsc's gofer write, or read, this snapshot.
    pub fn image(&self, dir: &Path, name: &str, snapshot: &SnapshotId) -> Result<PathBuf, String> {
        self.write_image(&dir.join(name), snapshot, false)
    }

    /// One into which the pod saves itself.
    pub fn image_of_its_own(&self, dir: &Path, snapshot: &SnapshotId) -> Result<PathBuf, String> {
        self.write_image(&dir.join("save"), snapshot, self.resumes())
    }

    fn write_image(
        &self,
        image: &Path,
        snapshot: &SnapshotId,
        tell_pod: bool,
    ) -> Result<PathBuf, String> {
        let token = self.node.token(&self.pod)?;
        fs::create_dir(image).map_err(|e| format!("{}: {e}", image.display()))?;
        let prefix = match self.storage.path.as_str() {
            "" => format!("{snapshot}/"),
            path => format!("{path}/{snapshot}/"),
        };
        let mut labels: BTreeMap<String, String> = self.requirements.labels();
        let policy = &self.policy.metadata;
        labels.insert(POLICY_LABEL.to_owned(), policy.name.clone());
        labels.insert(NAMESPACE_LABEL.to_owned(), policy.namespace.clone());
        labels.insert("pod".to_owned(), self.pod.metadata.name.clone());
        let mut options = json!({
            "bucket": self.storage.bucket,
            "object_prefix": prefix,
            "group": self.group,
            "labels": labels,
            "tell_pod": tell_pod,
            "statsd": self.node.statsd,
        });
        if let Some(token) = token {
            options["token"] = json!({ "access_token": token, "token_type": "Bearer" });
        }
        let file = image.join("gcs_opts.json");
        // It holds a secret.
        let mut open = fs::OpenOptions::new();
        let opened = open.create_new(true).write(true).mode(0o600).open(&file);
        opened
            .and_then(|mut file| file.write_all(options.to_string().as_bytes()))
            .map_err(|e| format!("{}: {e}", file.display()))?;
        Ok(image.to_owned())
    }

    /// What tells runsc that the pod may save itself into this image path.
    pub fn annotations(&self, image: &Path) -> Value {
        json!({
            "dev.gvisor.internal.checkpoint.enable": "true",
            "dev.gvisor.internal.checkpoint.path": image,
            "dev.gvisor.internal.checkpoint.resume": self.resumes().to_string(),
            "dev.gvisor.internal.checkpoint.compression": "none",
            "dev.gvisor.internal.checkpoint.exclude-committed-zero-pages": "true",
        })
    }

    /// Whether the pod goes on when it is saved.
    pub fn resumes(&self) -> bool {
        self.policy.after == AfterCheckpoint::Resume
    }

    pub fn saves_itself(&self) -> bool {
        self.policy.trigger == TriggerType::Workload
    }

    /// How far a snapshot is.
    pub async fn state(&self, snapshot: &SnapshotId) -> Result<Option<State>, String> {
        let state = self.store()?.state(snapshot).await;
        state.map_err(|e| e.to_string())
    }

    /// Tells others why a snapshot was not saved.
    pub async fn note_failure(&self, snapshot: &SnapshotId, why: &str) {
        let name = &self.policy.metadata;
        let noted = match self.store() {
            Ok(store) => {
                let catalog = Catalog::new(&store);
                let noted = catalog.note_failure(snapshot, &name.namespace, &name.name, why);
                noted.await.map_err(|e| e.to_string())
            }
            Err(e) => Err(e),
        };
        if let Err(e) = noted {
            eprintln!("agent: that {snapshot} failed cannot be noted: {e}");
        }
    }
}
