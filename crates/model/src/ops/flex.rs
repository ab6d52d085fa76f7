//! The fused operations on the CPU: Flex's tensors in, [`kernels`](crate::kernels) over their
//! values, Flex's tensors out.

use std::ops::Range;

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::TensorData;

use super::fused::{FactorPairs, Fused, FusedCache, Maybe, Operand, Placed};
use super::{AttentionShape, Targets};
use crate::kernels::matmul::{View, Weights, linear, multiply};
use crate::kernels::{attention, cross_entropy, norm, pool, rope, silu};

impl Fused for Flex {
    fn fused_rms_norm(x: FlexTensor, scale: FlexTensor, epsilon: f32) -> FlexTensor {
        rms_norm(&x.to_contiguous(), &scale.to_contiguous(), epsilon)
    }

    fn fused_linear(
        x: FlexTensor,
        weight: Operand<Self>,
        bias: Maybe<Self>,
        residual: Maybe<Self>,
        factors: FactorPairs<Self>,
        placed: Vec<Placed>,
        _: bool,
    ) -> FlexTensor {
        let inputs = LinearInputs::new(weight, bias.into_option(), factors.into_vec(), placed);
        inputs.forward(&x.to_contiguous(), residual.into_option()).0
    }

    fn fused_rope(qkv: FlexTensor, table: FlexTensor, shape: AttentionShape) -> FlexTensor {
        rotate(qkv, &table, shape, false)
    }

    fn fused_attention(qkv: FlexTensor, shape: AttentionShape) -> FlexTensor {
        attention_forward(&qkv.to_contiguous(), shape).0
    }

    fn fused_silu_gated(gate_up: FlexTensor) -> FlexTensor {
        silu_gated(&gate_up.to_contiguous())
    }

    fn fused_nll(x: FlexTensor, head: Operand<Self>, targets: Targets, chunk: usize) -> FlexTensor {
        nll(&x.to_contiguous(), &head, &targets, chunk, false).0
    }
}

impl FusedCache for Flex {
    fn fused_cached_attention(
        qkv: FlexTensor,
        keys: FlexTensor,
        values: FlexTensor,
        past: usize,
        shape: AttentionShape,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let qkv = qkv.to_contiguous();
        let cache_shape = dims(&keys);
        let (mut keys, mut values) = (into_values(keys), into_values(values));
        let mut out = pool::take(shape.length * shape.out_width());
        attention::cached(&mut out, (&mut keys, &mut values), self::values(&qkv), past, shape);
        (
            tensor(out, [shape.length, shape.out_width()]),
            tensor(keys, cache_shape),
            tensor(values, cache_shape),
        )
    }
}

/// The values of a contiguous tensor.
pub(super) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().unwrap_or_else(|| unreachable!("a contiguous tensor of f32"))
}

/// The values of a tensor, without a copy if nobody else holds them.
pub(super) fn into_values(tensor: FlexTensor) -> Vec<f32> {
    let values = tensor.into_data().try_into_vec::<f32>();
    values.unwrap_or_else(|_| unreachable!("a tensor of f32"))
}

/// The values of a tensor to be changed, copied if somebody else holds them.
pub(super) fn owned(tensor: FlexTensor) -> Vec<f32> {
    if tensor.is_unique() {
        return into_values(tensor);
    }
    let tensor = tensor.to_contiguous();
    let mut copy = pool::take(values(&tensor).len());
    copy.copy_from_slice(values(&tensor));
    copy
}

/// Keeps the buffer of `tensor` for the next of its size, if nobody else holds it.
pub(super) fn give_back(tensor: FlexTensor) {
    if tensor.is_unique() {
        pool::keep(into_values(tensor));
    }
}

pub(super) fn tensor(values: Vec<f32>, shape: [usize; 2]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

pub(super) fn dims(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.layout().shape();
    [shape[0], shape[1]]
}

pub(super) fn rms_norm(x: &FlexTensor, scale: &FlexTensor, epsilon: f32) -> FlexTensor {
    let mut y = pool::take(values(x).len());
    norm::forward(&mut y, values(x), values(scale), epsilon);
    tensor(y, dims(x))
}

/// Rotates the query and key heads of `qkv`, in place if nobody else holds them.
pub(super) fn rotate(
    qkv: FlexTensor,
    table: &FlexTensor,
    shape: AttentionShape,
    inverse: bool,
) -> FlexTensor {
    let dims = dims(&qkv);
    let mut rotated = owned(qkv);
    let heads = shape.heads + shape.kv_heads;
    let table = table.to_contiguous();
    rope::rotate(&mut rotated, dims[1], heads, (values(&table), shape.head_dim), inverse);
    tensor(rotated, dims)
}

/// The output, and the logarithms of the softmaxes' denominators.
pub(super) fn attention_forward(qkv: &FlexTensor, shape: AttentionShape) -> (FlexTensor, Vec<f32>) {
    let rows = dims(qkv)[0];
    let mut out = pool::take(rows * shape.out_width());
    let mut log_sums = vec![0.0; rows * shape.heads];
    attention::forward(&mut out, &mut log_sums, values(qkv), shape);
    (tensor(out, [rows, shape.out_width()]), log_sums)
}

pub(super) fn silu_gated(gate_up: &FlexTensor) -> FlexTensor {
    let [rows, width] = dims(gate_up);
    let mut y = pool::take(rows * width / 2);
    silu::forward(&mut y, values(gate_up), width / 2);
    tensor(y, [rows, width / 2])
}

/// The negative log-likelihood of each target, and its gradient by `x` if wanted.
pub(super) fn nll(
    x: &FlexTensor,
    head: &Operand<Flex>,
    targets: &Targets,
    chunk: usize,
    gradient: bool,
) -> (FlexTensor, Option<FlexTensor>) {
    let (head, [all_rows, inputs], rows) = (head.to_contiguous(), dims(x), targets.rows.len());
    let at = |row: &u32| *row as usize * inputs..(*row as usize + 1) * inputs;
    let mut picked = pool::take(rows * inputs);
    let parts = targets.rows.iter().zip(picked.chunks_exact_mut(inputs));
    parts.for_each(|(row, picked)| picked.copy_from_slice(&values(x)[at(row)]));
    let mut nll = vec![0.0; rows];
    let mut dx = gradient.then(|| pool::take(picked.len()));
    let head = (head.weights(), head.shape());
    cross_entropy::nll(&mut nll, dx.as_deref_mut(), &picked, head, &targets.ids, chunk);
    let dx = dx.map(|dx| {
        let mut all = pool::take(all_rows * inputs);
        all.fill(0.0);
        let parts = targets.rows.iter().zip(dx.chunks_exact(inputs));
        parts.for_each(|(row, dx)| all[at(row)].copy_from_slice(dx));
        pool::keep(dx);
        tensor(all, [all_rows, inputs])
    });
    pool::keep(picked);
    (tensor(nll, [rows, 1]), dx)
}

impl Clone for Operand<Flex> {
    fn clone(&self) -> Self {
        self.to_contiguous()
    }
}

impl Operand<Flex> {
    fn to_contiguous(&self) -> Self {
        match self {
            Self::F32(weights) => Self::F32(weights.to_contiguous()),
            Self::Int8 { values, scales } => {
                Self::Int8 { values: values.to_contiguous(), scales: scales.to_contiguous() }
            }
        }
    }

    /// Its values; it must be contiguous.
    pub(super) fn weights(&self) -> Weights<'_> {
        match self {
            Self::F32(weights) => Weights::F32(values(weights)),
            Self::Int8 { values: integers, scales } => {
                let integers = integers.as_slice();
                let integers =
                    integers.unwrap_or_else(|| unreachable!("contiguous 8-bit integers"));
                Weights::Int8 { values: integers, scales: values(scales) }
            }
        }
    }

    pub(super) fn shape(&self) -> [usize; 2] {
        match self {
            Self::F32(weights) => dims(weights),
            Self::Int8 { values, .. } => dims(values),
        }
    }
}

/// What a linear map takes beside x and the residual; all contiguous.
#[derive(Clone)]
pub(super) struct LinearInputs {
    pub(super) weight: Operand<Flex>,
    bias: Option<FlexTensor>,
    /// A and B of each adapter.
    pub(super) factors: Vec<FlexTensor>,
    pub(super) placed: Vec<Placed>,
    /// A of all adapters of each client, one below another, so that x is read once for all of them.
    stacked: Vec<f32>,
    /// Clients whose rows x has, in equal parts.
    pub(super) clients: usize,
}

/// One adapter of a linear map, of one client.
pub(super) struct Adapted<'a> {
    /// Its rows of the client's stacked A.
    pub(super) ranks: Range<usize>,
    /// B \[outputs in the range, rank\].
    pub(super) b: View<'a>,
    /// The outputs that it adds to.
    pub(super) outputs: Range<usize>,
    pub(super) scale: f32,
}

impl LinearInputs {
    pub(super) fn new(
        weight: Operand<Flex>,
        bias: Option<FlexTensor>,
        factors: Vec<FlexTensor>,
        placed: Vec<Placed>,
    ) -> Self {
        let factors: Vec<FlexTensor> = factors.iter().map(FlexTensor::to_contiguous).collect();
        let bias = bias.map(|bias| bias.to_contiguous());
        let clients = match (factors.get(1), placed.first()) {
            (Some(b), Some((outputs, _))) => dims(b)[0] / outputs.len(),
            _ => 1,
        };
        let of_client =
            |client| factors.iter().step_by(2).flat_map(move |a| part(values(a), client, clients));
        let stacked = (0..clients).flat_map(of_client).copied().collect();
        Self { weight: weight.to_contiguous(), bias, factors, placed, stacked, clients }
    }

    /// Rank of all adapters of one client together.
    pub(super) fn total_rank(&self) -> usize {
        self.stacked.len() / self.clients / self.weight.shape()[1]
    }

    /// The stacked A of `client` \[total rank, inputs\].
    pub(super) fn a(&self, client: usize) -> View<'_> {
        View::new(part(&self.stacked, client, self.clients), self.weight.shape()[1])
    }

    /// The adapters of `client`.
    pub(super) fn adapters(&self, client: usize) -> impl Iterator<Item = Adapted<'_>> {
        let mut first = 0;
        self.factors.chunks_exact(2).zip(&self.placed).map(move |(pair, (outputs, scale))| {
            let rank = dims(&pair[1])[1];
            let ranks = first..first + rank;
            first = ranks.end;
            let b = View::new(part(values(&pair[1]), client, self.clients), rank);
            Adapted { ranks, b, outputs: outputs.clone(), scale: *scale }
        })
    }

    /// The output, and x Aᵀ \[rows, total rank\].
    pub(super) fn forward(
        &self,
        x: &FlexTensor,
        residual: Option<FlexTensor>,
    ) -> (FlexTensor, Vec<f32>) {
        let ([outputs, inputs], rows) = (self.weight.shape(), dims(x)[0]);
        let x = values(x);
        let add_to_residual = residual.is_some();
        let add = add_to_residual || self.bias.is_some();
        let mut y = match residual {
            Some(residual) => owned(residual),
            None => pool::take(rows * outputs),
        };
        if let Some(bias) = &self.bias {
            if !add_to_residual {
                y.fill(0.0);
            }
            for y in y.chunks_exact_mut(outputs) {
                y.iter_mut().zip(values(bias)).for_each(|(y, bias)| *y += bias);
            }
        }
        linear(&mut y, x, self.weight.weights(), [outputs, inputs], add);
        let rank = self.total_rank();
        let mut all_projected = vec![0.0; rows * rank];
        for client in 0..self.clients {
            let x = View::new(part(x, client, self.clients), inputs);
            let y = part_mut(&mut y, client, self.clients);
            let projected = part_mut(&mut all_projected, client, self.clients);
            multiply((projected, rank, 0), x, self.a(client).transposed(), 1.0, false);
            for Adapted { ranks, b, outputs: range, scale } in self.adapters(client) {
                let projected = View::part(projected, rank, ranks.start, ranks.len());
                multiply((y, outputs, range.start), projected, b.transposed(), scale, true);
            }
        }
        (tensor(y, [rows, outputs]), all_projected)
    }
}

/// The part of `client` where `clients` have equal parts of `values`.
pub(super) fn part<T>(values: &[T], client: usize, clients: usize) -> &[T] {
    let len = values.len() / clients;
    &values[client * len..(client + 1) * len]
}

/// The part of `client` where `clients` have equal parts of `values`.
pub(super) fn part_mut<T>(values: &mut [T], client: usize, clients: usize) -> &mut [T] {
    let len = values.len() / clients;
    &mut values[client * len..(client + 1) * len]
}
