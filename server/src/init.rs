//! `init`: a new server directory.

use std::path::{Path, PathBuf};

use floret_core::Seed;
use toml::Value;

use crate::authority::{self, Authority};
use crate::config::{SAMPLE, ServerSection};
use crate::error::CommandError;
use crate::files::{self, Access, FileError};
use crate::home::Home;
use crate::ledger_key;
use crate::model_dir;

/// Makes `dir` a server's directory for the base model in `model`: an authority, the server's
/// certificate, a random seed, and a `server.toml` that explains every option.
///
/// # Errors
/// A directory that is a server's already, a base model that Floret cannot honour, a host that no
/// certificate can name, or a file that cannot be written.
pub fn init(dir: &Path, model: &Path, server: &ServerSection) -> Result<Home, CommandError> {
    let home = Home::new(dir);
    for path in [home.config().to_owned(), home.ca_key(), home.state()] {
        if path.exists() {
            let hint = "this directory is a server's already; choose another, or remove it first";
            return Err(CommandError::Exists { path, hint });
        }
    }
    model_dir::read_config(model)?;
    authority::check_hosts(&server.hosts)?;
    files::create_dir(dir, Access::Shared)?;
    files::create_dir(&home.devices(), Access::Shared)?;
    files::create_dir(&dir.join("secrets"), Access::Private)?;
    Authority::create(&home)?.issue_server(&home, &server.hosts)?;
    write_seed(&home)?;
    ledger_key::create(&home)?;
    let settings = settings(&model_path(dir, model)?, server);
    files::replace(home.config(), Access::Shared, settings.as_bytes())?;
    Ok(home)
}

fn write_seed(home: &Home) -> Result<(), CommandError> {
    let mut seed = Seed([0; 32]);
    getrandom::fill(&mut seed.0).map_err(CommandError::Random)?;
    let text = String::from(seed) + "\n";
    Ok(files::replace(&home.seed(), Access::Private, text.as_bytes())?)
}

/// The model's path for `server.toml`: relative if it lies within the server's directory.
fn model_path(dir: &Path, model: &Path) -> Result<PathBuf, FileError> {
    let absolute =
        |path: &Path| path.canonicalize().map_err(|error| FileError::new("find", path, error));
    let (dir, model) = (absolute(dir)?, absolute(model)?);
    Ok(model.strip_prefix(&dir).map(Path::to_owned).unwrap_or(model))
}

/// The sample with the given values in the place of its defaults.
fn settings(model: &Path, server: &ServerSection) -> String {
    let defaults = ServerSection::default();
    let text = |text: String| Value::String(text);
    let hosts = |hosts: &[String]| hosts.iter().cloned().map(text).collect::<Vec<_>>();
    let model = text(model.display().to_string());
    let [listen, admin] = [server.listen, server.admin].map(|address| text(address.to_string()));
    let changes = [
        ("dir", text("model".into()), model),
        ("listen", text(defaults.listen.to_string()), listen),
        ("admin", text(defaults.admin.to_string()), admin),
        ("hosts", Value::Array(hosts(&defaults.hosts)), Value::Array(hosts(&server.hosts))),
    ];
    changes.iter().fold(SAMPLE.to_owned(), |sample, (key, default, value)| {
        sample.replace(&format!("\n{key} = {default}\n"), &format!("\n{key} = {value}\n"))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Config;

    const MODEL: &str = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 8,
        "vocab_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}"#;

    #[test]
    fn a_new_directory_holds_the_given_settings() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("a \"model\"");
        fs::create_dir(&model).unwrap();
        let server = ServerSection {
            listen: "0.0.0.0:9000".parse().unwrap(),
            admin: "127.0.0.1:9001".parse().unwrap(),
            hosts: vec!["fl.example.org".into(), "::1".into()],
        };
        let target = dir.path().join("server");
        let error = init(&target, &model, &server).unwrap_err().to_string();
        assert!(error.contains("config.json") && !target.exists(), "{error}");

        fs::write(model.join("config.json"), MODEL).unwrap();
        let home = init(&target, &model, &server).unwrap();
        let config = Config::load(&home).unwrap();
        assert_eq!(config.server, server);
        assert_eq!(config.model_dir(&home), model.canonicalize().unwrap());
        assert_eq!(fs::read_to_string(home.seed()).unwrap().trim().len(), 64);

        let error = init(&target, &model, &server).unwrap_err().to_string();
        assert!(error.contains("a server's already"), "{error}");
    }

    #[test]
    fn models_within_the_directory_are_relative_and_bad_hosts_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("base");
        fs::create_dir(&model).unwrap();
        fs::write(model.join("config.json"), MODEL).unwrap();
        let home = init(dir.path(), &model, &ServerSection::default()).unwrap();
        assert_eq!(Config::load(&home).unwrap().model.dir, Path::new("base"));

        let hosts = vec!["not a host".into()];
        let other = dir.path().join("other");
        let server = ServerSection { hosts, ..ServerSection::default() };
        let error = init(&other, &model, &server).unwrap_err().to_string();
        assert!(error.contains("\"not a host\""), "{error}");
    }
}
