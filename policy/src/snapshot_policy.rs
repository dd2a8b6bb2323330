//! `PodSnapshotPolicy`: which pods, when, what then, and for how long.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{
    Error, Metadata, Retention, Selector, field::Field, metadata::resource_name,
    retention::read_time,
};

/// Who says when a pod is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TriggerType {
    /// The program in the pod.
    Workload,
    /// A [`PodSnapshotManualTrigger`](crate::PodSnapshotManualTrigger).
    Manual,
}

/// What becomes of a pod that was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterCheckpoint {
    /// It goes on.
    Resume,
    /// It ends.
    Stop,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSnapshotPolicy {
    /// Its name. It is for pods of its namespace only.
    pub metadata: Metadata,
    /// The file that says so.
    pub file: PathBuf,
    /// Which pods it is for.
    pub selector: Selector,
    /// Where snapshots go: the name of a [`PodSnapshotStorageConfig`](crate::PodSnapshotStorageConfig).
    pub storage_config: String,
    /// When pods are saved.
    pub trigger: TriggerType,
    /// What becomes of them then.
    pub after: AfterCheckpoint,
    /// How long snapshots are kept.
    pub retention: Retention,
    /// Labels of pods whose values tell groups of snapshots apart.
    pub grouping_labels: Vec<String>,
    pub(crate) storage_config_line: u64,
}

impl PodSnapshotPolicy {
    pub(crate) fn read(metadata: Metadata, spec: &Field<'_>) -> Result<Self, Error> {
        let mut fields = spec.map()?;
        let selector = Selector::read(&fields.require("selector")?)?;
        let storage_config = fields.require("storageConfigName")?;
        let storage_config_line = storage_config.line();
        let storage_config = resource_name(&storage_config)?;
        let (trigger, after) = read_trigger(&fields.require("triggerConfig")?)?;
        let mut retention = Retention::default();
        if let Some(config) = fields.take("retentionConfig") {
            let mut config = config.map()?;
            retention.unused_for = Some(read_time(&config.require("lastAccessTimeout")?)?);
            config.end()?;
        }
        let mut grouping_labels = Vec::new();
        if let Some(rules) = fields.take("snapshotGroupingRules") {
            let mut rules = rules.map()?;
            let mut by_label = rules.require("groupByLabelValue")?.map()?;
            for label in by_label.require("labels")?.list()? {
                grouping_labels.push(label.name()?.to_owned());
            }
            if let Some(policy) = by_label.take("groupRetentionPolicy") {
                let mut policy = policy.map()?;
                let count = policy.require("maxSnapshotCountPerGroup")?.count()?;
                // Nought lifts the limit.
                retention.max_per_group = (count > 0).then_some(count);
                policy.end()?;
            }
            by_label.end()?;
            rules.end()?;
        }
        if let Some(scope) = fields.take("snapshotScope")
            && !scope.one_of(&[("whole-pod", true), ("rootfs-only", false)])?
        {
            return Err(scope.error("rootfs-only is not supported: whole pods are saved"));
        }
        fields.end()?;
        Ok(Self {
            metadata,
            file: spec.file().to_owned(),
            selector,
            storage_config,
            trigger,
            after,
            retention,
            grouping_labels,
            storage_config_line,
        })
    }

    /// The values of a pod's labels that tell its group from others of the policy. Labels that the pod does not have are named in the error: without
    /// them, GKE neither saves nor restores it.
    pub fn grouping_of(
        &self,
        labels: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, Vec<String>> {
        let missing = self.grouping_labels.iter();
        let missing: Vec<String> = missing
            .filter(|label| !labels.contains_key(*label))
            .cloned()
            .collect();
        if !missing.is_empty() {
            return Err(missing);
        }
        let wanted = self.grouping_labels.iter();
        let values = wanted.filter_map(|label| labels.get_key_value(label));
        Ok(values.map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}

fn read_trigger(field: &Field<'_>) -> Result<(TriggerType, AfterCheckpoint), Error> {
    let mut fields = field.map()?;
    let types = [
        ("workload", TriggerType::Workload),
        ("manual", TriggerType::Manual),
    ];
    let trigger = fields.require("type")?.one_of(&types)?;
    let ends = [
        ("resume", AfterCheckpoint::Resume),
        ("stop", AfterCheckpoint::Stop),
    ];
    let after = fields.take("postCheckpoint");
    let after = after.map(|after| after.one_of(&ends)).transpose()?;
    fields.end()?;
    Ok((trigger, after.unwrap_or(AfterCheckpoint::Resume)))
}
