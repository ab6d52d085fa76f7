//! `export`: an adapter as a PEFT directory.

use std::path::Path;
use std::sync::Arc;

use floret_core::peft::{CONFIG_FILE, WEIGHTS_FILE, to_peft};
use floret_core::{Digest, Layout, Version};
use floret_store::ReadFolder;

use crate::config::Config;
use crate::error::CommandError;
use crate::files::{self, Access};
use crate::home::Home;
use crate::model_dir;
use crate::store::{SavedRun, StoreError};

/// What was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Version of the adapter.
    pub version: Version,
    /// Digest of its values.
    pub digest: Digest,
}

/// Writes a version of the adapter that is on disk, the current one by default, into the folder
/// `out` as PEFT saves it. Works whether or not a server runs.
///
/// # Errors
/// No run yet, a version that is not kept, damaged state, or a folder that holds an adapter
/// already, unless forced.
pub fn export(
    home: &Home,
    config: &Config,
    out: &Path,
    version: Option<Version>,
    force: bool,
) -> Result<Exported, CommandError> {
    let paths = [CONFIG_FILE, WEIGHTS_FILE].map(|file| out.join(file));
    if let Some(path) = paths.iter().find(|path| !force && path.exists()) {
        let hint = "choose another folder, or add --force to replace it";
        return Err(CommandError::Exists { path: path.clone(), hint });
    }
    let model = config.model_dir(home);
    let state = home.state();
    let saved = SavedRun::read(&state)?.ok_or(StoreError::Empty(state.clone()))?;
    let layout = Arc::new(Layout::new(&model_dir::read_config(&model)?, &saved.lora)?);
    let adapter = saved.adapter(&ReadFolder::new(&state), &layout, version)?;
    let base = model.canonicalize().unwrap_or(model);
    let peft = to_peft(&adapter, &saved.lora, &base.display().to_string());
    files::create_dir(out, Access::Shared)?;
    // The settings last: a folder without them is no adapter.
    files::replace(&paths[1], Access::Shared, &peft.weights)?;
    files::replace(&paths[0], Access::Shared, peft.config.as_bytes())?;
    Ok(Exported { version: version.unwrap_or(saved.version), digest: adapter.digest() })
}
