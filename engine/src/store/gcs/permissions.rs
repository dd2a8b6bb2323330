//! What the caller may do below the store's path: tried out, because nobody but the store knows all that grants and conditions come to.
//!
//! What is tried leaves nothing behind. An object is written only where it can be removed again, which is known from asking to remove
//! one that is not there. Else a write is tried that cannot happen, for a precondition that does not hold. Objects have the suffix of
//! parts, so that what an ill-timed kill leaves goes by the bucket's rule for those.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    GcsBackend, PART_SUFFIX,
    bucket::{Bucket, Finding, shell_word},
    client::{Client, Request, escaped},
    download,
    objects::{Component, Conditional, Stored},
};
use crate::{
    error::{Error, ErrorKind, Result},
    store::ReadRange,
};

/// What is written.
const PROBE: &[u8] = b"podsnap bucket check";

/// Time that a request under way gets to end when the check is cancelled: what it writes could not be removed before.
const GRACE: Duration = Duration::from_secs(2);

/// What came of trying a permission out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Access {
    /// The caller has it.
    Granted,
    /// The caller does not have it.
    Refused,
    /// Nothing could be tried that would tell.
    Unknown,
}

/// A permission of Cloud Storage, and whether the caller has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Permission {
    /// Its name, as in `storage.objects.get`.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
    /// Whether saving and restoring need it.
    pub needed: bool,
    /// Whether the caller has it.
    pub access: Access,
}

/// What came of trying.
#[derive(Default)]
pub(super) struct Tried {
    pub(super) permissions: Vec<Permission>,
    pub(super) findings: Vec<Finding>,
    /// What the store said of each refusal.
    refusals: Vec<String>,
}

impl Tried {
    pub(super) fn note(
        &mut self,
        name: &'static str,
        purpose: &'static str,
        needed: bool,
        access: Access,
    ) {
        self.permissions.push(Permission {
            name,
            purpose,
            needed,
            access,
        });
    }

    fn needed(&mut self, name: &'static str, purpose: &'static str, access: Access) {
        self.note(name, purpose, true, access);
    }

    /// What an answer says of a permission. An error that is no refusal ends the check.
    fn judge<T>(&mut self, answer: Result<T>) -> Result<Access> {
        match answer {
            Ok(_) => Ok(Access::Granted),
            Err(e) if is_refusal(&e) => {
                self.refusals.push(e.to_string());
                Ok(Access::Refused)
            }
            Err(e) => Err(e),
        }
    }
}

fn is_refusal(e: &Error) -> bool {
    e.kind() == ErrorKind::Forbidden && e.to_string().contains("(403: ")
}

/// Whether a refusal speaks of the right to list: the store then says no more than that an object may be absent.
pub(super) fn hides_absence(e: &Error) -> bool {
    is_refusal(e) && e.to_string().contains("have storage.objects.list ")
}

/// Two objects of one check, and whether they may be there.
struct Probes {
    single: String,
    composed: String,
    left: Vec<String>,
}

/// Tries the permissions on objects and folders out. Whatever is written is removed, whether this ends well or not.
pub(super) async fn try_out(
    backend: &GcsBackend,
    bucket: Option<&Bucket>,
    cancel: &CancellationToken,
) -> Result<Tried> {
    let name = format!("podsnap-check-{}", uuid::Uuid::new_v4().simple());
    let mut probes = Probes {
        single: backend.object(&format!("{name}{PART_SUFFIX}")),
        composed: backend.object(&format!("{name}-composed{PART_SUFFIX}")),
        left: Vec::new(),
    };
    let mut tried = Tried::default();
    let done = tokio::select! {
        done = all(backend, bucket, &mut probes, &mut tried) => done,
        () = async { cancel.cancelled().await; tokio::time::sleep(GRACE).await } => Err(Error::interrupted()),
    };
    let mut left = Vec::new();
    for object in &probes.left {
        let client = &*backend.client;
        let removed = client.delete(object, None).await;
        if removed.is_err() && client.exists(object).await.unwrap_or(true) {
            left.push(client.place(object));
        }
    }
    if !left.is_empty() {
        let quoted: Vec<_> = left.iter().map(|object| shell_word(object)).collect();
        let finding = Finding {
            kind: "probe-left",
            problem: format!(
                "what was written to try permissions out cannot be removed: {}. Remove it as soon as that is possible",
                left.join(", ")
            ),
            command: Some(format!("gcloud storage rm {}", quoted.join(" "))),
            slows_saves: true,
        };
        tracing::warn!("{finding}");
        tried.findings.push(finding);
    }
    done?;
    if cancel.is_cancelled() {
        return Err(Error::interrupted());
    }
    let missing = missing(backend, bucket, &tried);
    tried.findings.extend(missing);
    Ok(tried)
}

async fn all(
    backend: &GcsBackend,
    bucket: Option<&Bucket>,
    probes: &mut Probes,
    tried: &mut Tried,
) -> Result<()> {
    let client = &*backend.client;
    let nothing_there = client.delete(&probes.single, None).await;
    let hidden = nothing_there.as_ref().is_err_and(hides_absence);
    let deletes = match hidden {
        true => Access::Unknown,
        false => tried.judge(nothing_there)?,
    };
    let kept = bucket.is_some_and(|b| !b.can_remove_parts());
    let deletes = match deletes != Access::Refused && !kept {
        true => by_writing(client, probes, tried, deletes).await?,
        false => without_writing(client, &probes.single, tried, deletes).await?,
    };
    tried.needed(
        "storage.objects.delete",
        "replacing leases and heads, removing parts and snapshots",
        deletes,
    );
    if bucket.is_some_and(|b| b.hierarchical_namespace) {
        let access = folders(backend, tried).await?;
        tried.needed(
            "storage.folders.create",
            "a snapshot's folder, in a hierarchical bucket",
            access,
        );
    }
    let listed = client.list(&probes.single).await;
    let access = match listed {
        Err(e) if is_refusal(&e) => Access::Refused,
        listed => listed.map(|_| Access::Granted)?,
    };
    tried.note("storage.objects.list", "ls and rm only", false, access);
    Ok(())
}

const READS: (&str, &str) = ("storage.objects.get", "reading; composing packs of parts");
const WRITES: (&str, &str) = ("storage.objects.create", "writing");

/// Writes an object, reads it, composes another one of it, and removes both.
async fn by_writing(
    client: &Client,
    probes: &mut Probes,
    tried: &mut Tried,
    deletes: Access,
) -> Result<Access> {
    probes.left.push(probes.single.clone());
    let written = client
        .insert(
            &probes.single,
            Bytes::from_static(PROBE),
            Conditional::Absent,
        )
        .await;
    let stored = written.as_ref().ok().copied();
    let creates = tried.judge(written)?;
    tried.needed(WRITES.0, WRITES.1, creates);
    let Some(stored) = stored else {
        probes.left.clear();
        let reads = reads_absent(client, &probes.single).await?;
        tried.needed(READS.0, READS.1, reads);
        return Ok(deletes);
    };
    let range = ReadRange::Exact(0..PROBE.len() as u64);
    let read = download::read(client, &probes.single, &range, Some(stored.generation)).await;
    if read.as_ref().is_ok_and(|read| read.bytes != PROBE) {
        let place = client.place(&probes.single);
        return Err(Error::damaged(place, "it is not what was written just now"));
    }
    let reads = tried.judge(read)?;
    tried.needed(READS.0, READS.1, reads);
    if reads == Access::Granted {
        compose(client, probes, tried, stored).await?;
    }
    // Either may be gone: composing removes its sources, if the server can do that.
    let mut removed = Access::Granted;
    for object in probes.left.clone() {
        match tried.judge(client.delete(&object, None).await)? {
            Access::Granted => probes.left.retain(|left| *left != object),
            _ => removed = Access::Refused,
        }
    }
    Ok(removed)
}

async fn compose(
    client: &Client,
    probes: &mut Probes,
    tried: &mut Tried,
    stored: Stored,
) -> Result<()> {
    let source = Component {
        name: probes.single.clone(),
        stored,
    };
    probes.left.push(probes.composed.clone());
    let composed = client
        .compose(&probes.composed, &[source], stored.len, stored.crc32c)
        .await;
    match composed {
        Ok(_) => Ok(()),
        Err(e) if is_refusal(&e) => {
            probes.left.pop();
            tried.findings.push(Finding {
                kind: "no-compose",
                problem: format!("packs cannot be composed of parts, and so not be saved: {e}"),
                command: None,
                slows_saves: true,
            });
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// Tries writing and reading without that anything could come of it.
async fn without_writing(
    client: &Client,
    object: &str,
    tried: &mut Tried,
    deletes: Access,
) -> Result<Access> {
    // No object has this generation.
    let impossible = client
        .insert(object, Bytes::new(), Conditional::Generation(1))
        .await;
    let creates = match impossible {
        Err(e) if e.kind() == ErrorKind::Conflict => Access::Granted,
        // The right to write is asked for before the right to replace, where the store's message tells which it is.
        Err(e) if e.to_string().contains("have storage.objects.delete ") => Access::Unknown,
        tried_out => tried.judge(tried_out)?,
    };
    tried.needed(WRITES.0, WRITES.1, creates);
    let reads = reads_absent(client, object).await?;
    tried.needed(READS.0, READS.1, reads);
    Ok(deletes)
}

/// Reads what is not there. A refusal may be about that.
async fn reads_absent(client: &Client, object: &str) -> Result<Access> {
    match client.get_metadata(object).await {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Access::Granted),
        Err(e) if is_refusal(&e) => Ok(Access::Unknown),
        other => other.map(|_| Access::Granted),
    }
}

/// Makes the store's own folder, which is there as soon as anything is saved. At a bucket's top there is none to make.
async fn folders(backend: &GcsBackend, tried: &mut Tried) -> Result<Access> {
    const PERMISSION: &str = "storage.folders.create";
    let client = &*backend.client;
    let bucket = client.bucket_url();
    if backend.prefix.is_empty() {
        let asked = Request {
            action: "tell what these credentials may do in",
            permission: "no permission",
            ..Request::get(
                format!("{bucket}/iam/testPermissions?permissions={PERMISSION}"),
                "",
            )
        };
        let Ok(answer) = client.call_json(&asked).await else {
            return Ok(Access::Unknown);
        };
        let granted = answer.json["permissions"].as_array();
        return Ok(
            match granted.is_some_and(|g| g.iter().any(|p| p == PERMISSION)) {
                true => Access::Granted,
                false => Access::Refused,
            },
        );
    }
    let folder = format!("{}/", backend.prefix);
    let body = json!({ "name": folder }).to_string();
    let request = Request::mutation(
        Method::POST,
        format!("{bucket}/folders?recursive=true"),
        "make the folder",
        PERMISSION,
        &folder,
    )
    .with_body("application/json", Bytes::from(body).into());
    let made = client.call_json(&request).await.map_err(|(e, _)| e);
    if made
        .as_ref()
        .is_err_and(|e| e.to_string().contains("(409: "))
    {
        return Ok(Access::Granted);
    }
    let access = tried.judge(made)?;
    if access == Access::Granted {
        // It was not there before, so it goes if nobody has used it since; that takes a right that hardly anybody has or needs.
        let request = Request::mutation(
            Method::DELETE,
            format!("{bucket}/folders/{}", escaped(&folder)),
            "remove the folder",
            "storage.folders.delete",
            &folder,
        );
        if let Err((error, _)) = client.call(&request).await {
            tracing::debug!(%error, "the store's folder stays");
        }
    }
    Ok(access)
}

/// One finding for all permissions that are refused and needed, with the commands that grant them.
fn missing(backend: &GcsBackend, bucket: Option<&Bucket>, tried: &Tried) -> Option<Finding> {
    let refused = tried.permissions.iter();
    let refused: Vec<&str> = refused
        .filter(|p| p.needed && p.access == Access::Refused)
        .map(|p| p.name)
        .collect();
    if refused.is_empty() {
        return None;
    }
    let principal = tried.refusals.first().map(|r| principal(r));
    let place = backend.client.place(&backend.prefix);
    let managed = bucket.is_none_or(|b| b.uniform_access);
    Some(Finding {
        kind: "missing-permission",
        problem: format!(
            "saving to {place} needs {}, which these credentials do not have. Make a role of what is needed, once for a project, and grant it",
            refused.join(" and ")
        ),
        command: Some(format!(
            "{}; {}",
            role_command(),
            grant_command(
                backend.client.bucket(),
                if managed { &backend.prefix } else { "" },
                principal.as_deref().unwrap_or("PRINCIPAL")
            )
        )),
        slows_saves: true,
    })
}

/// The command that makes a role of what saving and restoring need.
pub(super) fn role_command() -> &'static str {
    "gcloud iam roles create podsnapAgent --project=PROJECT --permissions=storage.objects.get,storage.objects.create,storage.objects.delete,storage.folders.create"
}

/// The command that grants this role on a path of a bucket.
pub(super) fn grant_command(bucket: &str, path: &str, principal: &str) -> String {
    let what = format!("--member={principal} --role=projects/PROJECT/roles/podsnapAgent");
    if path.is_empty() {
        let url = shell_word(&format!("gs://{bucket}"));
        return format!("gcloud storage buckets add-iam-policy-binding {url} {what}");
    }
    let url = shell_word(&format!("gs://{bucket}/{path}/"));
    format!(
        "gcloud storage managed-folders create {url}; gcloud storage managed-folders add-iam-policy-binding {url} {what}"
    )
}

/// Whom a refusal of Google's is about, as `--member` wants it: `EMAIL does not have PERMISSION access to ...`.
pub(super) fn principal(refusal: &str) -> String {
    let said = refusal.split(" does not have ").next().unwrap_or_default();
    let email = said.rsplit([' ', '(']).next().unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.@+".contains(c);
    match email.contains('@') && email.len() < 256 && email.chars().all(plain) {
        true if email.ends_with(".gserviceaccount.com") => format!("serviceAccount:{email}"),
        true => format!("user:{email}"),
        false => "PRINCIPAL".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_refused_is_named_in_the_command_and_nothing_else_is() {
        for (refusal, expected) in [
            (
                "the store refuses to write gs://b/x (403: a-1@p.iam.gserviceaccount.com does not have storage.objects.create access)",
                "serviceAccount:a-1@p.iam.gserviceaccount.com",
            ),
            (
                "(403: jo@example.com does not have x)",
                "user:jo@example.com",
            ),
            ("(403: Anonymous caller does not have x)", "PRINCIPAL"),
            ("(403: a@b;reboot does not have x)", "PRINCIPAL"),
            ("(403: $(reboot)@b does not have x)", "PRINCIPAL"),
            ("something else", "PRINCIPAL"),
        ] {
            assert_eq!(principal(refusal), expected, "{refusal}");
        }
    }
}
