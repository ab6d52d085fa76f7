use super::*;
use crate::coordinator::tests::{config, layout};

fn scribe() -> Scribe {
    Scribe::new(SigningKey::from_secret(&[5; 32]))
}

fn ledger(entries: u64) -> (String, Head) {
    let settings = Settings::of(&config(), layout().digest());
    let (mut text, mut head) = (String::new(), Head::default());
    for at in 0..entries {
        let (line, next) =
            scribe().line(head, Time(at), Fact::Settings(Box::new(settings.clone())));
        text += &line;
        text += "\n";
        head = next;
    }
    (text, head)
}

#[test]
fn a_ledger_holds_and_is_json_line_by_line() {
    let (text, head) = ledger(3);
    let (entries, found) = verify(text.as_bytes(), &scribe().public()).unwrap();
    assert_eq!((entries.len(), found), (3, head));
    for (line, entry) in text.lines().zip(&entries) {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(value["entry"]["entry"], entry.entry);
    }
    assert_eq!(verify(b"", &scribe().public()).unwrap(), (Vec::new(), Head::default()));
}

#[test]
fn any_changed_byte_names_its_entry() {
    let (text, _) = ledger(3);
    let starts: Vec<usize> = text.match_indices(FORM.opening).map(|(at, _)| at).collect();
    for at in 0..text.len() {
        for flip in [1u8, 0x80] {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= flip;
            let broken = verify(&bytes, &scribe().public()).unwrap_err();
            let entry = starts.iter().filter(|start| **start <= at).count() as u64;
            assert_eq!(broken.entry, entry, "byte {at}: {broken}");
        }
    }
}

#[test]
fn lines_cannot_go_or_change_places_and_a_cut_end_shows_in_the_head() {
    let (text, head) = ledger(4);
    let lines: Vec<&str> = text.lines().collect();
    let verify_text = |text: &str| verify(text.as_bytes(), &scribe().public());
    let verify_lines = |lines: &[&str]| {
        let text: String = lines.iter().flat_map(|line| [*line, "\n"]).collect();
        verify_text(&text)
    };
    let [a, b, c, d] = lines[..] else { unreachable!() };
    assert_eq!(verify_lines(&[b, c, d]).unwrap_err().entry, 1);
    assert_eq!(verify_lines(&[a, c, d]).unwrap_err().entry, 2);
    assert_eq!(verify_lines(&[a, c, b, d]).unwrap_err().entry, 2);
    assert_ne!(verify_lines(&[a, b, c]).unwrap().1, head);
    let other = SigningKey::from_secret(&[6; 32]).public();
    assert_eq!(verify(text.as_bytes(), &other).unwrap_err().entry, 1);
}

#[test]
fn pseudonyms_are_stable_keyed_and_not_the_name() {
    let client: ClientId = "phone".parse().unwrap();
    let name = scribe().pseudonym(&client);
    assert_eq!(name, scribe().pseudonym(&client));
    assert!(name.0.len() == 32 && !name.0.contains("phone"));
    let other = Scribe::new(SigningKey::from_secret(&[6; 32]));
    assert_ne!(name, other.pseudonym(&client));
}
