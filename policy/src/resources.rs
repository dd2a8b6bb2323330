//! All resources of a file or a directory, and how they refer to one another.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    API_GROUP, Error, Metadata, Pod, PodSnapshotManualTrigger, PodSnapshotPolicy,
    PodSnapshotStorageConfig, field::Field, yaml,
};

/// What files say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    /// Where snapshots are kept.
    pub storage_configs: Vec<PodSnapshotStorageConfig>,
    /// Which pods are snapshotted.
    pub policies: Vec<PodSnapshotPolicy>,
    /// Pods that are to be snapshotted now.
    pub triggers: Vec<PodSnapshotManualTrigger>,
    /// Pods.
    pub pods: Vec<Pod>,
}

impl Resources {
    /// Reads the files `*.yaml` and `*.yml` of a directory, in the order of their names, or one file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let cannot = |path: &Path, e: std::io::Error| {
            Error::of_file(path, format!("it cannot be read: {e}"))
        };
        let stat = fs::metadata(path).map_err(|e| cannot(path, e))?;
        let mut files: Vec<PathBuf> = vec![path.to_owned()];
        if stat.is_dir() {
            let entries = fs::read_dir(path).map_err(|e| cannot(path, e))?;
            let entries = entries.collect::<Result<Vec<_>, _>>();
            let entries = entries.map_err(|e| cannot(path, e))?;
            files = entries.iter().map(|entry| entry.path()).collect();
            files.retain(|file| file.extension().is_some_and(|e| e == "yaml" || e == "yml"));
            files.sort();
        }
        let mut all = Self::default();
        for file in &files {
            let mut text = String::new();
            let opened = File::open(file).map_err(|e| cannot(file, e))?;
            opened
                .take(yaml::MAX_FILE_LEN as u64 + 1)
                .read_to_string(&mut text)
                .map_err(|e| cannot(file, e))?;
            all.add(Self::parse(file, &text)?)?;
        }
        Ok(all)
    }

    /// Reads the text of a file, which may hold several documents. Resources of other kinds are an error.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Error> {
        let mut all = Self::default();
        for document in yaml::parse(file, text)? {
            all.add(Self::document(&Field::root(file, &document))?)?;
        }
        Ok(all)
    }

    fn document(root: &Field<'_>) -> Result<Self, Error> {
        let mut fields = root.map()?;
        let version = fields.require("apiVersion")?;
        let kind = fields.require("kind")?;
        let metadata = Metadata::read(&fields.require("metadata")?)?;
        let spec = fields.require("spec")?;
        // What the cluster says about it.
        fields.pass_over(&["status"]);
        fields.end()?;
        let mut read = Self::default();
        let ours = ["v1", "v1alpha1"].map(|version| format!("{API_GROUP}/{version}"));
        let expected = match kind.text()? {
            "PodSnapshotStorageConfig" => {
                let config = PodSnapshotStorageConfig::read(metadata, &spec)?;
                read.storage_configs.push(config);
                &ours[..]
            }
            "PodSnapshotPolicy" => {
                read.policies
                    .push(PodSnapshotPolicy::read(metadata, &spec)?);
                &ours[..]
            }
            "PodSnapshotManualTrigger" => {
                let trigger = PodSnapshotManualTrigger::read(metadata, &spec)?;
                read.triggers.push(trigger);
                &ours[..]
            }
            "Pod" => {
                read.pods.push(Pod::read(metadata, &spec)?);
                &["v1".to_owned()][..]
            }
            other => {
                return Err(kind.error(format!(
                    "{other:?} is not one of PodSnapshotStorageConfig, PodSnapshotPolicy, PodSnapshotManualTrigger, Pod"
                )));
            }
        };
        let found = version.text()?;
        if !expected.iter().any(|version| version == found) {
            let expected = expected.join(" or ");
            return Err(version.error(format!("{found:?} is not {expected}")));
        }
        Ok(read)
    }

    /// Takes in what another file says. Two resources of one kind and name are an error.
    fn add(&mut self, other: Self) -> Result<(), Error> {
        fn merge<T>(
            kind: &str,
            into: &mut Vec<T>,
            from: Vec<T>,
            key: impl Fn(&T) -> (String, &Path),
        ) -> Result<(), Error> {
            for one in from {
                let (name, file) = key(&one);
                if let Some(same) = into.iter().find(|known| key(known).0 == name) {
                    let (_, first) = key(same);
                    let problem = format!("the {kind} {name} is in {} already", first.display());
                    return Err(Error::new(file, 0, "metadata.name", problem));
                }
                into.push(one);
            }
            Ok(())
        }
        // Storage configurations belong to no namespace.
        merge(
            "PodSnapshotStorageConfig",
            &mut self.storage_configs,
            other.storage_configs,
            |c| (c.metadata.name.clone(), &c.file),
        )?;
        merge(
            "PodSnapshotPolicy",
            &mut self.policies,
            other.policies,
            |p| (p.metadata.full_name(), &p.file),
        )?;
        merge(
            "PodSnapshotManualTrigger",
            &mut self.triggers,
            other.triggers,
            |t| (t.metadata.full_name(), &t.file),
        )?;
        merge("Pod", &mut self.pods, other.pods, |p| {
            (p.metadata.full_name(), &p.file)
        })
    }

    /// The policy for a pod: of its namespace, with a selector that matches its labels; of several, the first by name.
    pub fn policy_for(&self, pod: &Pod) -> Option<&PodSnapshotPolicy> {
        let of_pod = self.policies.iter().filter(|policy| {
            policy.metadata.namespace == pod.metadata.namespace
                && policy.selector.matches(&pod.metadata.labels)
        });
        of_pod.min_by(|a, b| a.metadata.name.cmp(&b.metadata.name))
    }

    /// Where a policy's snapshots are kept.
    pub fn storage_of(
        &self,
        policy: &PodSnapshotPolicy,
    ) -> Result<&PodSnapshotStorageConfig, Error> {
        let mut configs = self.storage_configs.iter();
        let found = configs.find(|config| config.metadata.name == policy.storage_config);
        found.ok_or_else(|| {
            let problem = format!(
                "there is no PodSnapshotStorageConfig {:?}",
                policy.storage_config
            );
            Error::new(&policy.file, 0, "spec.storageConfigName", problem)
        })
    }
}
