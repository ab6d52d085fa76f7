//! `tokenizer.json`, and a text through it.

use std::path::Path;

use floret_core::ModelConfig;
use floret_model::Tokenizer;

use super::Target;
use super::model_fixture::models;

pub(super) const TARGET: Target =
    Target { name: "tokenizer", run, limit, seeds, share: 1, longest: 2000 };

const TEXT: &str = "a baab <s> b\u{e4}\n";

fn run(data: &[u8]) -> bool {
    let model = ModelConfig { vocab_size: 64, ..models()[0].clone() };
    let Ok(tokenizer) = Tokenizer::from_bytes(Path::new("tokenizer.json"), data, &model) else {
        return false;
    };
    let Ok(ids) = tokenizer.encode_beginning(TEXT) else { return false };
    assert!(ids.iter().all(|id| (*id as usize) < model.vocab_size), "{ids:?}");
    let _ = tokenizer.decode(&ids);
    true
}

/// Vocabularies, merges and compiled patterns.
fn limit(data: &[u8]) -> usize {
    500 * data.len() + (4 << 20)
}

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let levels = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":0,
"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
"normalizer":null,"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,
"use_regex":false},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>",
"type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},
{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<s>":{"id":"<s>","ids":[0],"tokens":["<s>"]}}},
"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":
{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{"<s>":0,"a":1,"b":2,"ab":3,"ba":4,
"aab":5},"merges":[["a","b"],["b","a"],["a","ab"]]}}"#;
    let llama = r#"{"version":"1.0","added_tokens":[],"normalizer":{"type":"Sequence","normalizers":
[{"type":"Prepend","prepend":"_"},{"type":"Replace","pattern":{"String":" "},"content":"_"}]},
"pre_tokenizer":null,"post_processor":null,"decoder":{"type":"Sequence","decoders":[{"type":"Replace",
"pattern":{"String":"_"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip",
"content":" ","start":1,"stop":0}]},"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,
"byte_fallback":true,"vocab":{"<unk>":0,"_":1,"a":2,"b":3,"_a":4},"merges":["_ a"]}}"#;
    let qwen = r#"{"version":"1.0","added_tokens":[],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":
"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\s+|[ab]+"},"behavior":"Isolated",
"invert":false},{"type":"Digits","individual_digits":true}]},"decoder":null,"model":{"type":"BPE",
"vocab":{"a":0,"b":1},"merges":[]}}"#;
    let words = r#"{"version":"1.0","pre_tokenizer":{"type":"Whitespace"},"model":{"type":"WordLevel",
"vocab":{"a":0,"[UNK]":1},"unk_token":"[UNK]"}}"#;
    let pieces = r#"{"version":"1.0","pre_tokenizer":{"type":"BertPreTokenizer"},"model":{"type":
"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"@@","max_input_chars_per_word":100,
"vocab":{"a":0,"@@b":1,"[UNK]":2}}}"#;
    let unigram = r#"{"version":"1.0","pre_tokenizer":{"type":"Metaspace","replacement":"_",
"prepend_scheme":"always"},"model":{"type":"Unigram","unk_id":0,"vocab":[["<unk>",0.0],["a",-1.5],
["b",-2.0]],"byte_fallback":false}}"#;
    [
        ("byte-level", levels),
        ("llama", llama),
        ("qwen2", qwen),
        ("words", words),
        ("pieces", pieces),
        ("unigram", unigram),
    ]
    .map(|(name, text)| (name, text.as_bytes().to_vec()))
    .to_vec()
}
