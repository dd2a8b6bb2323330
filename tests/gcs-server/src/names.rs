//! Which names objects and folders may have.

use crate::error::{Refusal, Result};

/// Bytes of an object's or folder's whole name.
const NAME_LEN: usize = 1024;
/// Bytes of one component in a hierarchical bucket.
const COMPONENT_LEN: usize = 512;
/// Folders within one another.
const DEPTH: usize = 50;

/// Refuses what cannot be an object's name.
pub(crate) fn check_object(name: &str, hierarchical: bool) -> Result<()> {
    let reserved =
        matches!(name, "" | "." | "..") || name.starts_with(".well-known/acme-challenge/");
    if reserved || name.contains(['\r', '\n']) {
        return Err(Refusal::malformed(
            "InvalidObjectName",
            format!("Invalid object name: {name:?}"),
        ));
    }
    if name.len() > NAME_LEN {
        let message = format!("The specified object name is longer than {NAME_LEN} bytes.");
        return Err(Refusal::malformed("KeyTooLong", message));
    }
    if hierarchical {
        check_components(name)
    } else {
        Ok(())
    }
}

/// Refuses what cannot be a folder's name; it ends in `/`.
pub(crate) fn check_folder(name: &str) -> Result<()> {
    if !name.ends_with('/') || name.starts_with('/') || name.contains("//") {
        let message =
            format!("Folder name {name:?} must end in '/', and its components must not be empty.");
        return Err(Refusal::invalid(message));
    }
    check_object(name, true)
}

fn check_components(name: &str) -> Result<()> {
    if name.split('/').any(|c| c.len() > COMPONENT_LEN) {
        let message = format!("A component of {name:?} is longer than {COMPONENT_LEN} bytes.");
        return Err(Refusal::malformed("KeyTooLong", message));
    }
    if parents(name).count() > DEPTH {
        return Err(Refusal::invalid(format!(
            "Folders nest at most {DEPTH} deep."
        )));
    }
    Ok(())
}

/// The folders that a name lies in, outermost first, each with its `/`. A folder's own name is one of them.
pub(crate) fn parents(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').map(|(at, _)| &name[..=at])
}
