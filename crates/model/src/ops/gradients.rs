//! The backward passes of the fused operations on the CPU.
//!
//! What is kept between the passes is what the gradients of tracked inputs need, and nothing for
//! frozen weights.

use std::fmt;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Flex};

use super::flex::{
    LinearInputs, attention_forward, dims, give_back, nll, owned, part, part_mut, rms_norm, rotate,
    silu_gated, tensor, values,
};
use super::fused::{FactorPairs, Fused, Maybe, Operand, Placed};
use super::{AttentionShape, Targets};
use crate::kernels::matmul::{View, linear_backward, multiply};
use crate::kernels::{attention, norm, pool, silu};

/// Adapters that one linear map can have: those of queries, keys and values.
const ADAPTERS: usize = 3;

/// Inputs of a linear map: x, residual, weight, bias, and A and B of each adapter.
const LINEAR: usize = 4 + 2 * ADAPTERS;

impl<C: CheckpointStrategy> Fused for Autodiff<Flex, C> {
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let guards = [x.node(), scale.node()];
        let (x, scale) = (x.into_primitive().to_contiguous(), scale.into_primitive());
        let scale = scale.to_contiguous();
        let y = rms_norm(&x, &scale, epsilon);
        match RmsNorm.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Saved(RmsNormState { x, scale, epsilon }), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn fused_linear(
        x: FloatTensor<Self>,
        weight: Operand<Self>,
        bias: Maybe<Self>,
        residual: Maybe<Self>,
        factors: FactorPairs<Self>,
        placed: Vec<Placed>,
        train_weight: bool,
    ) -> FloatTensor<Self> {
        let (bias, residual) = (bias.into_option(), residual.into_option());
        let factors = factors.into_vec();
        let untracked = Self::from_inner(x.primitive().clone());
        let guard = |tensor: Option<&FloatTensor<Self>>| tensor.unwrap_or(&untracked).node();
        let guards: [NodeGuard; LINEAR] = std::array::from_fn(|at| match at {
            0 => guard(Some(&x)),
            1 => guard(residual.as_ref()),
            2 => guard(match &weight {
                Operand::F32(weights) => Some(weights),
                Operand::Int8 { .. } => None,
            }),
            3 => guard(bias.as_ref()),
            _ => guard(factors.get(at - 4)),
        });
        drop(untracked);
        let inner = |tensor: FloatTensor<Self>| tensor.into_primitive();
        let weight = match weight {
            Operand::F32(weights) => Operand::F32(inner(weights)),
            Operand::Int8 { values, scales } => Operand::Int8 { values, scales: inner(scales) },
        };
        let factors: Vec<_> = factors.into_iter().map(inner).collect();
        let inputs = LinearInputs::new(weight, bias.map(inner), factors, placed);
        let x = inner(x).to_contiguous();
        let (y, projected) = inputs.forward(&x, residual.map(inner));
        match Linear.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let keep = train_weight || !inputs.factors.is_empty();
                let x = if keep {
                    Some(x)
                } else {
                    give_back(x);
                    None
                };
                prep.finish(Saved(LinearState { inputs, x, projected }), y)
            }
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn fused_rope(
        qkv: FloatTensor<Self>,
        table: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        let (qkv, guard) = qkv.into_parts();
        let table = table.into_primitive();
        let rotated = rotate(qkv, &table, shape, false);
        match Rope.prepare::<C>([guard]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Saved((table, shape)), rotated),
            OpsKind::UnTracked(prep) => prep.finish(rotated),
        }
    }

    fn fused_attention(qkv: FloatTensor<Self>, shape: AttentionShape) -> FloatTensor<Self> {
        let (qkv, guard) = qkv.into_parts();
        let qkv = qkv.to_contiguous();
        let (out, log_sums) = attention_forward(&qkv, shape);
        match Attention.prepare::<C>([guard]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let state = AttentionState { qkv, out: out.clone(), log_sums, shape };
                prep.finish(Saved(state), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn fused_silu_gated(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate_up, guard) = gate_up.into_parts();
        let gate_up = gate_up.to_contiguous();
        let y = silu_gated(&gate_up);
        match SiluGated.prepare::<C>([guard]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Saved(gate_up), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }

    fn fused_nll(
        x: FloatTensor<Self>,
        head: Operand<Self>,
        targets: Targets,
        chunk: usize,
    ) -> FloatTensor<Self> {
        let (x, guard) = x.into_parts();
        let head = match head {
            Operand::F32(weights) => Operand::F32(weights.into_primitive()),
            Operand::Int8 { values, scales } => {
                Operand::Int8 { values, scales: scales.into_primitive() }
            }
        };
        let x = x.to_contiguous();
        match Nll.prepare::<C>([guard]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => match nll(&x, &head, &targets, chunk, true) {
                (losses, Some(dx)) => prep.finish(Saved((dx, targets.rows)), losses),
                (_, None) => unreachable!("the gradient was asked for"),
            },
            OpsKind::UnTracked(prep) => prep.finish(nll(&x, &head, &targets, chunk, false).0),
        }
    }
}

/// What a backward pass needs; its Debug form shows no value, since activations come from private
/// data.
#[derive(Clone)]
struct Saved<T>(T);

impl<T> fmt::Debug for Saved<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Saved")
    }
}

#[derive(Debug)]
struct RmsNorm;

#[derive(Clone)]
struct RmsNormState {
    x: FlexTensor,
    scale: FlexTensor,
    epsilon: f32,
}

impl Backward<Flex, 2> for RmsNorm {
    type State = Saved<RmsNormState>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([x_node, scale_node], Saved(RmsNormState { x, scale, epsilon })) =
            (ops.parents, ops.state);
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        if let Some(node) = scale_node {
            let mut d_scale = vec![0.0; values(&scale).len()];
            norm::backward_scale(&mut d_scale, values(&dy), values(&x), epsilon);
            grads.register::<Flex>(node.id, tensor(d_scale, dims(&scale)));
        }
        if let Some(node) = x_node {
            let shape = dims(&dy);
            let mut dx = owned(dy);
            norm::backward(&mut dx, values(&x), values(&scale), epsilon);
            grads.register::<Flex>(node.id, tensor(dx, shape));
        }
        give_back(x);
    }
}

#[derive(Debug)]
struct Linear;

#[derive(Clone)]
struct LinearState {
    inputs: LinearInputs,
    /// The input, if an adapter or the weight needs it.
    x: Option<FlexTensor>,
    /// x Aᵀ \[rows, total rank of a client\].
    projected: Vec<f32>,
}

impl Backward<Flex, LINEAR> for Linear {
    type State = Saved<LinearState>;

    fn backward(self, ops: Ops<Self::State, LINEAR>, grads: &mut Gradients, _: &mut Checkpointer) {
        let Saved(LinearState { inputs, x, projected }) = ops.state;
        let [x_node, residual_node, weight_node, bias_node, factor_nodes @ ..] = ops.parents;
        let dy_tensor = grads.consume::<Flex>(&ops.node).to_contiguous();
        let ([outputs, width], rows) = (inputs.weight.shape(), dims(&dy_tensor)[0]);
        let dy = values(&dy_tensor);
        let mut dx = x_node.as_ref().map(|_| {
            let mut dx = pool::take(rows * width);
            linear_backward(&mut dx, dy, inputs.weight.weights(), [outputs, width], false);
            dx
        });
        let mut gradients: Vec<Option<Vec<f32>>> = factor_nodes
            .iter()
            .zip(&inputs.factors)
            .map(|(node, factor)| node.as_ref().map(|_| vec![0.0; values(factor).len()]))
            .collect();
        for client in 0..inputs.clients {
            let dx = dx.as_deref_mut().map(|dx| part_mut(dx, client, inputs.clients));
            let x = x.as_ref().map(|x| part(values(x), client, inputs.clients));
            let dy = part(dy, client, inputs.clients);
            let projected = part(&projected, client, inputs.clients);
            let of_client = OfClient { inputs: &inputs, client, x, dy, projected };
            of_client.backward(dx, &mut gradients);
        }
        let nodes = factor_nodes.into_iter().zip(gradients).zip(&inputs.factors);
        for ((node, gradient), factor) in nodes {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<Flex>(node.id, tensor(gradient, dims(factor)));
            }
        }
        if let (Some(node), Some(x)) = (weight_node, &x) {
            let mut d_weight = vec![0.0; outputs * width];
            let (dy, x) = (View::new(dy, outputs), View::new(values(x), width));
            multiply((&mut d_weight, width, 0), dy.transposed(), x, 1.0, false);
            grads.register::<Flex>(node.id, tensor(d_weight, [outputs, width]));
        }
        if let Some(node) = bias_node {
            let mut d_bias = vec![0.0; outputs];
            for dy in dy.chunks_exact(outputs) {
                d_bias.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
            }
            grads.register::<Flex>(node.id, tensor(d_bias, [1, outputs]));
        }
        if let (Some(node), Some(dx)) = (x_node, dx) {
            grads.register::<Flex>(node.id, tensor(dx, [rows, width]));
        }
        match residual_node {
            Some(node) => grads.register::<Flex>(node.id, dy_tensor),
            None => give_back(dy_tensor),
        }
        x.into_iter().for_each(give_back);
    }
}

/// The rows of one client in the backward pass of a linear map.
struct OfClient<'a> {
    inputs: &'a LinearInputs,
    client: usize,
    x: Option<&'a [f32]>,
    dy: &'a [f32],
    projected: &'a [f32],
}

impl OfClient<'_> {
    /// Adds what its adapters give to `dx`, and writes the gradients of each A and B that are wanted
    /// to its parts of `gradients`.
    fn backward(&self, dx: Option<&mut [f32]>, gradients: &mut [Option<Vec<f32>>]) {
        let &Self { inputs, client, x, dy, projected } = self;
        let ([outputs, width], rank) = (inputs.weight.shape(), inputs.total_rank());
        if rank == 0 {
            return;
        }
        let mut d_projected = vec![0.0; projected.len()];
        for adapted in inputs.adapters(client) {
            let dy = View::part(dy, outputs, adapted.outputs.start, adapted.outputs.len());
            let part = (&mut d_projected[..], rank, adapted.ranks.start);
            multiply(part, dy, adapted.b, adapted.scale, false);
        }
        let d_projected = View::new(&d_projected, rank);
        if let Some(dx) = dx {
            multiply((dx, width, 0), d_projected, inputs.a(client), 1.0, true);
        }
        let mut d_stacked = vec![0.0; rank * width];
        if let Some(x) = x {
            let x = View::new(x, width);
            multiply((&mut d_stacked, width, 0), d_projected.transposed(), x, 1.0, false);
        }
        for (adapted, pair) in inputs.adapters(client).zip(gradients.chunks_exact_mut(2)) {
            let [d_a, d_b] = pair else { unreachable!("pairs of A and B") };
            if let Some(d_a) = d_a {
                let ranks = adapted.ranks.start * width..adapted.ranks.end * width;
                part_mut(d_a, client, inputs.clients).copy_from_slice(&d_stacked[ranks]);
            }
            if let Some(d_b) = d_b {
                let dy = View::part(dy, outputs, adapted.outputs.start, adapted.outputs.len());
                let (from, ranks) = (adapted.ranks.start, adapted.ranks.len());
                let projected = View::part(projected, rank, from, ranks);
                let d_b = part_mut(d_b, client, inputs.clients);
                multiply((d_b, ranks, 0), dy.transposed(), projected, adapted.scale, false);
            }
        }
    }
}

#[derive(Debug)]
struct Rope;

impl Backward<Flex, 1> for Rope {
    type State = Saved<(FlexTensor, AttentionShape)>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([node], Saved((table, shape))) = (ops.parents, ops.state);
        let dy = grads.consume::<Flex>(&ops.node);
        if let Some(node) = node {
            grads.register::<Flex>(node.id, rotate(dy, &table, shape, true));
        }
    }
}

#[derive(Debug)]
struct Attention;

#[derive(Clone)]
struct AttentionState {
    qkv: FlexTensor,
    out: FlexTensor,
    log_sums: Vec<f32>,
    shape: AttentionShape,
}

impl Backward<Flex, 1> for Attention {
    type State = Saved<AttentionState>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([node], Saved(AttentionState { qkv, out, log_sums, shape })) =
            (ops.parents, ops.state);
        let d_out = grads.consume::<Flex>(&ops.node).to_contiguous();
        if let Some(node) = node {
            let mut d_qkv = pool::take(values(&qkv).len());
            let outputs = (values(&out), values(&d_out));
            attention::backward(&mut d_qkv, values(&qkv), outputs, &log_sums, shape);
            grads.register::<Flex>(node.id, tensor(d_qkv, dims(&qkv)));
        }
        [qkv, out, d_out].into_iter().for_each(give_back);
    }
}

#[derive(Debug)]
struct SiluGated;

impl Backward<Flex, 1> for SiluGated {
    type State = Saved<FlexTensor>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([node], Saved(gate_up)) = (ops.parents, ops.state);
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        if let Some(node) = node {
            let mut gradient = pool::take(values(&gate_up).len());
            silu::backward(&mut gradient, values(&gate_up), values(&dy), dims(&dy)[1]);
            grads.register::<Flex>(node.id, tensor(gradient, dims(&gate_up)));
        }
        [gate_up, dy].into_iter().for_each(give_back);
    }
}

#[derive(Debug)]
struct Nll;

impl Backward<Flex, 1> for Nll {
    type State = Saved<(FlexTensor, Vec<u32>)>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let ([node], Saved((dx, rows))) = (ops.parents, ops.state);
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        if let Some(node) = node {
            let shape = dims(&dx);
            let mut dx = owned(dx);
            // A sum of losses has gradients of one.
            for (row, &dy) in rows.into_iter().zip(values(&dy)).filter(|(_, dy)| **dy != 1.0) {
                let row = row as usize * shape[1]..(row as usize + 1) * shape[1];
                dx[row].iter_mut().for_each(|value| *value *= dy);
            }
            grads.register::<Flex>(node.id, tensor(dx, shape));
        }
    }
}
