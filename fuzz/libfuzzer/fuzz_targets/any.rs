//! One harness for all targets: the environment variable `FLORET_TARGET` names the one to run.

#![no_main]

use std::sync::OnceLock;

use floret_fuzz::check::check;
use floret_fuzz::targets::{self, Target};
use libfuzzer_sys::fuzz_target;

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("FLORET_TARGET").unwrap_or_default();
        let known: Vec<&str> = targets::ALL.iter().map(|target| target.name).collect();
        targets::find(&name).unwrap_or_else(|| panic!("set FLORET_TARGET to one of {known:?}"))
    })
}

fuzz_target!(|data: &[u8]| {
    if let Err(failure) = check(target(), data) {
        panic!("{}: {failure}", target().name);
    }
});
