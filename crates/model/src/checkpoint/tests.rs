use std::fs::File;

use half::{bf16, f16};
use safetensors::tensor::{SafeTensors, TensorView};

use super::*;
use crate::device::cpu;
use crate::lora::values;
use crate::precision::Precision;
use crate::tokens::Tokens;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).join("base")
}

type Owned = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(name: &str) -> Owned {
    let bytes = fs::read(fixture(name).join(WEIGHTS)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let own = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.tensors().into_iter().map(|(name, view)| (name, own(view))).collect()
}

fn write(path: &Path, tensors: &Owned) {
    let view = |(dtype, shape, bytes): &'static (Dtype, Vec<usize>, Vec<u8>)| {
        TensorView::new(*dtype, shape.clone(), bytes).unwrap()
    };
    let tensors: &'static Owned = Box::leak(Box::new(tensors.clone()));
    let views = tensors.iter().map(|(name, tensor)| (name, view(tensor)));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A directory with the fixture's configuration and these tensors.
fn checkpoint(name: &str, tensors: &Owned) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture(name).join(CONFIG), dir.path().join(CONFIG)).unwrap();
    write(&dir.path().join(WEIGHTS), tensors);
    dir
}

fn error(dir: &Path) -> String {
    Checkpoint::open(dir).unwrap_err().to_string()
}

fn output(dir: &Path) -> Vec<f32> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let model = checkpoint.load(Precision::F32, &cpu()).unwrap();
    let tokens = Tokens::new(checkpoint.config(), &[&[1, 2, 3, 4]]).unwrap();
    values(model.logits(model.hidden(&tokens, None)))
}

const Q: &str = "model.layers.1.self_attn.q_proj.weight";

#[test]
fn tensors_that_do_not_fit_are_named() {
    let good = tensors("tiny_llama");
    let with = |change: &dyn Fn(&mut Owned)| {
        let mut tensors = good.clone();
        change(&mut tensors);
        let dir = checkpoint("tiny_llama", &tensors);
        error(dir.path())
    };
    type Case<'a> = (&'a dyn Fn(&mut Owned), &'a str, &'a str);
    let cases: [Case<'_>; 6] = [
        (&|t| drop(t.remove(Q)), Q, "is missing"),
        (&|t| drop(t.insert("model.extra".into(), t[Q].clone())), "model.extra", "not belong"),
        (&|t| t.get_mut(Q).unwrap().1.reverse(), Q, "[24, 32] where config.json asks for [32, 24]"),
        (&|t| t.get_mut(Q).unwrap().0 = Dtype::I32, Q, "type I32"),
        (
            &|t| {
                let mut head = t["model.embed_tokens.weight"].clone();
                head.2[5] ^= 1;
                t.insert(HEAD.into(), head);
            },
            HEAD,
            "tie_word_embeddings",
        ),
        (&|t| drop(t.remove("model.layers.0.mlp.up_proj.bias")), "up_proj.bias", "is missing"),
    ];
    for (change, name, problem) in cases {
        let error = with(change);
        assert!(error.contains(WEIGHTS) && error.contains(name), "{error}");
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn a_saved_tied_head_and_rotary_frequencies_are_harmless() {
    let mut tensors = tensors("tiny_llama");
    let embedding = tensors["model.embed_tokens.weight"].clone();
    tensors.insert(HEAD.into(), embedding.clone());
    tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), embedding);
    let dir = checkpoint("tiny_llama", &tensors);
    assert_eq!(output(dir.path()), output(&fixture("tiny_llama")));
}

#[test]
fn broken_files_are_named() {
    let dir = checkpoint("tiny_llama", &tensors("tiny_llama"));
    let path = dir.path().join(WEIGHTS);
    let whole = fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut not_json = whole.clone();
    not_json[8] = b'?';
    let mut huge = whole.clone();
    huge[7] = 0xff;
    let cases: [(&[u8], &str); 6] = [
        (&whole[..whole.len() - 1], "tensor model."),
        (&whole[..header], "truncated"),
        (&whole[..header / 2], "ends within its header"),
        (&whole[..5], "too short"),
        (&not_json, "header is not valid"),
        (&huge, "not a safetensors file"),
    ];
    for (bytes, problem) in cases {
        fs::write(&path, bytes).unwrap();
        let error = error(dir.path());
        assert!(error.contains(WEIGHTS) && error.contains(problem), "{error}");
    }
    fs::remove_file(&path).unwrap();
    assert!(error(dir.path()).contains("cannot read") && error(dir.path()).contains(WEIGHTS));
    fs::write(dir.path().join(CONFIG), r#"{"model_type": "gpt2"}"#).unwrap();
    assert!(error(dir.path()).contains("gpt2"));
    fs::remove_file(dir.path().join(CONFIG)).unwrap();
    assert!(error(dir.path()).contains(CONFIG));
}

#[test]
fn shards_give_the_same_model_and_a_missing_one_is_named() {
    let tensors = tensors("tiny_qwen2");
    let dir = checkpoint("tiny_qwen2", &tensors);
    fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    let shard = |name: &str| format!("model-0000{}-of-00002.safetensors", 1 + name.len() % 2);
    let map: BTreeMap<&String, String> = tensors.keys().map(|name| (name, shard(name))).collect();
    let index = serde_json::json!({ "weight_map": map });
    serde_json::to_writer(File::create(dir.path().join(INDEX)).unwrap(), &index).unwrap();
    for number in 0..2 {
        let mut part = tensors.clone();
        part.retain(|name, _| name.len() % 2 == number);
        write(&dir.path().join(format!("model-0000{}-of-00002.safetensors", number + 1)), &part);
    }
    assert_eq!(output(dir.path()), output(&fixture("tiny_qwen2")));

    let first = dir.path().join("model-00001-of-00002.safetensors");
    let mut part = tensors.clone();
    part.retain(|name, _| name.len() % 2 == 0);
    let (lost, _) = part.pop_first().unwrap();
    write(&first, &part);
    let message = error(dir.path());
    assert!(message.contains("model-00001") && message.contains(&lost), "{message}");
    fs::remove_file(first).unwrap();
    assert!(error(dir.path()).contains("model-00001-of-00002.safetensors"));
    fs::write(dir.path().join(INDEX), r#"{"weight_map": {"x": "../x.safetensors"}}"#).unwrap();
    assert!(error(dir.path()).contains("without a path"));
}

#[test]
fn half_precision_is_read() {
    let full = output(&fixture("tiny_llama"));
    type Convert = fn(f32) -> [u8; 2];
    let kinds: [(Dtype, Convert); 2] = [
        (Dtype::F16, |value| f16::from_f32(value).to_le_bytes()),
        (Dtype::BF16, |value| bf16::from_f32(value).to_le_bytes()),
    ];
    for (dtype, convert) in kinds {
        let mut tensors = tensors("tiny_llama");
        for (kind, _, bytes) in tensors.values_mut() {
            let values = to_f32(*kind, bytes).unwrap();
            (*kind, *bytes) = (dtype, values.into_iter().flat_map(convert).collect());
        }
        let dir = checkpoint("tiny_llama", &tensors);
        let half = output(dir.path());
        let largest = full.iter().zip(&half).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(largest > 0.0 && largest < 0.2, "{dtype:?}: {largest}");
    }
}

#[test]
fn digests_cover_every_file() {
    let dir = checkpoint("tiny_llama", &tensors("tiny_llama"));
    let digests = || Checkpoint::open(dir.path()).unwrap().digests();
    assert!(digests().unwrap_err().to_string().contains(TOKENIZER));
    fs::write(dir.path().join(TOKENIZER), "{}").unwrap();
    let first = digests().unwrap();
    fs::write(dir.path().join(TOKENIZER), "{ }").unwrap();
    let second = digests().unwrap();
    assert!(first.base == second.base && first.tokenizer != second.tokenizer);
    let config = fs::read_to_string(dir.path().join(CONFIG)).unwrap();
    fs::write(dir.path().join(CONFIG), config + "\n").unwrap();
    assert_ne!(digests().unwrap().base, second.base);
}
