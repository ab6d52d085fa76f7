//! The same operations out of Burn's tensor operations, for devices without kernels of our own and
//! as the reference of those kernels.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData, activation};

use super::{AttentionShape, Factors, LinearMap, Matrix, Targets};
use crate::tokens::indices;

pub(crate) fn rms_norm(x: Tensor<2>, scale: Tensor<2>, epsilon: f32) -> Tensor<2> {
    let mean = x.clone().square().mean_dim(1);
    x * mean.add_scalar(epsilon).sqrt().recip() * scale
}

pub(crate) fn linear(
    x: Tensor<2>,
    map: &LinearMap,
    adapters: Vec<Factors>,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    let [outputs, _] = map.weight.shape();
    let rows = x.dims()[0];
    let mut y = x.clone().matmul(map.weight.widened().transpose());
    for Factors { a, b, outputs: range, scale } in adapters {
        let clients = b.dims()[0] / range.len();
        let of_client = |client| {
            let [x, a, b] = [&x, &a, &b].map(|all| {
                let size = all.dims()[0] / clients;
                all.clone().narrow(0, client * size, size)
            });
            x.matmul(a.transpose()).mul_scalar(scale).matmul(b.transpose())
        };
        let part = Tensor::cat((0..clients).map(of_client).collect(), 0);
        let zeros = |width| Tensor::zeros([rows, width], &part.device());
        let (before, after) = (zeros(range.start), zeros(outputs - range.end));
        let parts = [before, part, after].into_iter().filter(|part| part.dims()[1] > 0);
        y = y + Tensor::cat(parts.collect(), 1);
    }
    if let Some(bias) = &map.bias {
        y = y + bias.clone();
    }
    match residual {
        Some(residual) => y + residual,
        None => y,
    }
}

pub(crate) fn rope(qkv: Tensor<2>, table: Tensor<2>, shape: AttentionShape) -> Tensor<2> {
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let ([rows, width], [positions, _], half) = (qkv.dims(), table.dims(), head_dim / 2);
    let turned = (heads + kv_heads) * head_dim;
    let x = qkv.clone().narrow(1, 0, turned);
    let x = x.reshape([rows / positions, positions, heads + kv_heads, head_dim]);
    let (first, second) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
    let angles = table.reshape([1, positions, 1, head_dim]);
    let (cos, sin) = (angles.clone().narrow(3, 0, half), angles.narrow(3, half, half));
    let x = first.clone() * cos.clone() - second.clone() * sin.clone();
    let y = second * cos + first * sin;
    let rotated = Tensor::cat(vec![x, y], 3).reshape([rows, turned]);
    Tensor::cat(vec![rotated, qkv.narrow(1, turned, width - turned)], 1)
}

pub(crate) fn attention(qkv: Tensor<2>, shape: AttentionShape) -> Tensor<2> {
    let AttentionShape { length, heads, kv_heads, head_dim } = shape;
    let sequences = qkv.dims()[0] / length;
    let part = |from: usize, heads: usize| {
        let part = qkv.clone().narrow(1, from * head_dim, heads * head_dim);
        part.reshape([sequences, length, heads, head_dim]).swap_dims(1, 2)
    };
    let queries = part(0, heads);
    attend(queries, part(heads, kv_heads), part(heads + kv_heads, kv_heads), 0)
}

pub(crate) fn cached_attention(
    qkv: Tensor<2>,
    cache: [Tensor<2>; 2],
    past: usize,
    shape: AttentionShape,
) -> (Tensor<2>, [Tensor<2>; 2]) {
    let AttentionShape { length, heads, kv_heads, head_dim } = shape;
    let width = kv_heads * head_dim;
    let mut from = heads * head_dim;
    let cache = cache.map(|cache| {
        let new = qkv.clone().narrow(1, from, width);
        from += width;
        cache.slice_assign([past..past + length, 0..width], new)
    });
    let seen = cache.clone().map(|cache| {
        let seen = cache.narrow(0, 0, past + length);
        seen.reshape([1, past + length, kv_heads, head_dim]).swap_dims(1, 2)
    });
    let queries = qkv.narrow(1, 0, heads * head_dim).reshape([1, length, heads, head_dim]);
    let [keys, values] = seen;
    (attend(queries.swap_dims(1, 2), keys, values, past), cache)
}

/// Attention of `queries` \[sequences, heads, length, head_dim\], which follow `past` tokens, over
/// keys and values \[sequences, kv_heads, past + length, head_dim\].
fn attend(queries: Tensor<4>, keys: Tensor<4>, values: Tensor<4>, past: usize) -> Tensor<2> {
    let ([sequences, heads, length, head_dim], kv_heads) = (queries.dims(), keys.dims()[1]);
    // Query heads that share a key head lie next to each other: their rows are stacked.
    let groups = heads / kv_heads;
    let scale = (head_dim as f64).sqrt().recip();
    let queries = queries.reshape([sequences, kv_heads, groups * length, head_dim]);
    let scores = queries.mul_scalar(scale).matmul(keys.swap_dims(2, 3));
    let row = |query: usize| {
        (0..past + length).map(move |key| if key > past + query { f32::NEG_INFINITY } else { 0.0 })
    };
    let mask: Vec<f32> = (0..groups).flat_map(|_| (0..length).flat_map(row)).collect();
    let mask = TensorData::new(mask, [1, 1, groups * length, past + length]);
    let scores = scores.clone() + Tensor::from_data(mask, &scores.device());
    let mixed = activation::softmax(scores, 3).matmul(values);
    let mixed = mixed.reshape([sequences, heads, length, head_dim]).swap_dims(1, 2);
    mixed.reshape([sequences * length, heads * head_dim])
}

pub(crate) fn silu_gated(gate_up: Tensor<2>) -> Tensor<2> {
    let half = gate_up.dims()[1] / 2;
    activation::silu(gate_up.clone().narrow(1, 0, half)) * gate_up.narrow(1, half, half)
}

/// The gradient is closed: softmax minus one at the target, times W. It is formed beside the loss,
/// chunk by chunk, and enters the graph as a constant, so that no graph holds logits.
pub(crate) fn nll(x: Tensor<2>, head: &Matrix, targets: &Targets, chunk: usize) -> Tensor<2> {
    let x = x.clone().select(0, indices(&targets.rows, &x.device()));
    let head = head.widened();
    let mut losses = Vec::new();
    for (index, targets) in targets.ids.chunks(chunk).enumerate() {
        let rows = x.clone().narrow(0, index * chunk, targets.len());
        losses.push(nll_of_chunk(rows, head.clone(), targets));
    }
    Tensor::cat(losses, 0)
}

fn nll_of_chunk(x: Tensor<2>, head: Tensor<2>, targets: &[u32]) -> Tensor<2> {
    let device = head.device();
    let column: Tensor<2, Int> = indices(targets, &device).reshape([targets.len(), 1]);
    let tracked = x.device().is_autodiff();
    let rows = if tracked { x.clone().inner() } else { x.clone() };
    let log_probs = activation::log_softmax(rows.matmul(head.clone().transpose()), 1);
    let loss = log_probs.clone().gather(1, column.clone()).neg();
    if !tracked {
        return loss;
    }
    let minus_one = Tensor::full([targets.len(), 1], -1.0, &device);
    let by_logits = log_probs.exp().scatter(1, column, minus_one, IndexingUpdateOp::Add);
    let by_x = by_logits.matmul(head).autodiff();
    // The value of the loss with the gradient of <x, by_x>.
    let product = (x * by_x).sum_dim(1);
    product.clone() - product.detach() + loss.autodiff()
}
