//! `floret-server status`: asks the running server, or else reads what it left on disk.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use floret_server::{CommandError, Config, SavedRun};
use serde_json::{Value, json};

use super::{ConfigArg, say};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes.
const ANSWER_MAX: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let (home, config) = args.config.load()?;
    let page = match TcpStream::connect_timeout(&config.server.admin, TIMEOUT) {
        Ok(stream) => ask(stream, config.server.admin)?,
        Err(_) => match SavedRun::read(&home.state()).map_err(CommandError::from)? {
            Some(saved) => from_disk(&saved, &config),
            None => bail!("the server is not running, and has not run yet"),
        },
    };
    if args.json {
        say(format_args!("{page:#}"))?;
    } else {
        show(&page)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One request over HTTP/1.0, whose answer ends with the connection.
fn ask(mut stream: TcpStream, address: SocketAddr) -> anyhow::Result<Value> {
    let mut answer = String::new();
    let mut exchange = || -> std::io::Result<()> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        (&mut stream).take(ANSWER_MAX).read_to_string(&mut answer)?;
        Ok(())
    };
    exchange().with_context(|| format!("{address} (server.admin) does not answer"))?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    serde_json::from_str(body)
        .with_context(|| format!("what answers on {address} (server.admin) is no floret-server"))
}

/// The same page as far as the disk knows it.
fn from_disk(saved: &SavedRun, config: &Config) -> Value {
    json!({
        "run": saved.run,
        "phase": "not running",
        "mode": config.run.mode,
        "at_work": saved.assignments.len(),
        "rounds": config.run.rounds,
        "round": saved.round,
        "version": saved.version,
        "adapter_digest": saved.adapters.get(&saved.version).map(|kept| kept.adapter),
        "abandoned_in_a_row": saved.abandoned_in_a_row,
        "concerns": saved.concerns.list(),
        "totals": saved.totals,
        "end": saved.end,
    })
}

fn show(page: &Value) -> anyhow::Result<()> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let phase = match text(&page["phase"]).as_str() {
        "not running" => "the server is not running; this is what it saved".to_owned(),
        "selecting" => {
            format!("selecting: {} of {} devices", page["population"], page["population_awaited"])
        }
        "training" => format!(
            "training: {} of {} updates, {:.0} s to the deadline",
            page["accepted"],
            page["cohort"],
            page["deadline_in_s"].as_f64().unwrap_or_default()
        ),
        "buffering" => format!(
            "buffering: {} of {} updates, {} devices at work",
            page["accepted"], page["buffer"], page["at_work"]
        ),
        other => other.to_owned(),
    };
    say(format_args!("run       {}", text(&page["run"])))?;
    say(format_args!("mode      {}", text(&page["mode"])))?;
    say(format_args!("phase     {phase}"))?;
    say(format_args!("version   {} of {}", page["version"], page["rounds"]))?;
    say(format_args!("round     {}", page["round"]))?;
    let totals = &page["totals"];
    say(format_args!(
        "rounds    {} committed, {} abandoned",
        totals["rounds_committed"], totals["rounds_abandoned"]
    ))?;
    say(format_args!(
        "updates   {} accepted, {} refused, {} declined, {} dropped out",
        totals["updates_accepted"],
        totals["updates_refused"],
        totals["assignments_declined"],
        totals["drop_outs"]
    ))?;
    say(format_args!(
        "bytes     {} up in updates, {} down in adapters for them",
        totals["bytes_up"], totals["bytes_down"]
    ))?;
    for concern in page["concerns"].as_array().into_iter().flatten() {
        say(format_args!("CONCERN   {}", text(&concern["message"])))?;
    }
    if let Some(end) = page["end"].as_object() {
        let how = if end["completed"] == Value::Bool(true) { "completed" } else { "failed" };
        say(format_args!("end       {how}: {}", text(&end["message"])))?;
    }
    Ok(())
}
