//! Every target accepts something, replays what once failed, and survives a few thousand inputs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use floret_fuzz::campaign::Campaign;
use floret_fuzz::check::check;
use floret_fuzz::corpus;
use floret_fuzz::targets::ALL;

#[test]
fn what_once_failed_stays_mended() {
    for target in ALL {
        for input in corpus::read_dir(&corpus::regressions_dir(target)).unwrap() {
            let shown = input.escape_ascii();
            check(target, &input)
                .unwrap_or_else(|error| panic!("{}: {error}: {shown}", target.name));
        }
    }
}

#[test]
fn every_target_has_a_small_corpus_of_which_it_accepts_some_and_refuses_some() {
    let mut total = 0;
    for target in ALL {
        let inputs = corpus::read_dir(&corpus::seeds_dir(target)).unwrap();
        total += inputs.iter().map(Vec::len).sum::<usize>();
        assert!(inputs.iter().all(|input| input.len() <= target.longest), "{}", target.name);
        let accepted = inputs.iter().filter(|input| check(target, input).unwrap().accepted).count();
        assert!(accepted > 0, "{} accepts nothing of its corpus", target.name);
        assert!(!check(target, b"\0\xff\xff\xff\xff").unwrap().accepted, "{}", target.name);
    }
    assert!(total < 200_000, "the corpus has {total} bytes");
}

#[test]
fn a_few_thousand_inputs_pass() {
    for target in ALL {
        let campaign = Campaign {
            targets: vec![target],
            seed: 7,
            from: 0,
            inputs: 20_000.min(4_000 * u64::from(target.share)),
            time: Duration::MAX,
            threads: 2,
            trace: None,
        };
        let found = campaign.run().unwrap().found;
        assert!(found.is_none(), "{}: {:?}", target.name, found);
    }
}
