//! A model's weights on a GPU, uploaded once and shared by sessions.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use trion_core::{Config, LayerNorm, Matrix, Model, Projection, Rescale, Session};

use crate::device::CudaDevice;
use crate::error::{Doing, Error, Result};
use crate::layout::{Kind, Packing, aligned, matrix_image};
use crate::plan::weights_bytes;

/// A matrix on the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceMatrix {
    pub(crate) kind: Kind,
    /// How plain ternary weights are stored.
    pub(crate) packing: Packing,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Address of the weights.
    pub(crate) weights: u64,
    /// Address of the scales of rows or groups, 0 if there are none.
    pub(crate) scales: u64,
    /// The scale of a whole matrix; 1 elsewhere.
    pub(crate) scale: f32,
    /// Columns that activations are quantised over; 0 for floats.
    pub(crate) span: usize,
}

impl DeviceMatrix {
    /// Pieces of columns of a row of plain ternary weights.
    pub(crate) fn tiles(&self) -> usize {
        self.cols.div_ceil(self.packing.piece_cols())
    }
}

/// A projection on the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceLinear {
    pub(crate) matrix: DeviceMatrix,
    /// Address of the norm's weights, 0 if it has none.
    pub(crate) norm: u64,
}

/// A block on the device.
#[derive(Debug)]
pub(crate) struct DeviceLayer {
    /// Indexed by [`Projection`].
    pub(crate) projections: [DeviceLinear; Projection::ALL.len()],
    /// Indexed by [`LayerNorm`]; addresses, 0 where there is none.
    pub(crate) norms: [u64; LayerNorm::ALL.len()],
}

/// A model on a GPU. Immutable; cloning shares it.
#[derive(Clone)]
pub struct CudaModel(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) device: CudaDevice,
    pub(crate) config: Config,
    pub(crate) fingerprint: u64,
    /// Row-blocks of the first token of a sequence.
    first_cost: usize,
    pub(crate) embedding: DeviceMatrix,
    pub(crate) head: DeviceMatrix,
    /// Address of the norm before the head.
    pub(crate) norm: u64,
    pub(crate) layers: Vec<DeviceLayer>,
    /// What all addresses point into.
    _memory: CudaSlice<u8>,
}

/// The widest head that the prompt's attention has shared memory for.
const WIDEST_HEAD: usize = 1024;

impl CudaModel {
    /// Copies a model's weights to the GPU, in an order that suits it.
    ///
    /// # Errors
    /// [`Error::Memory`] if they do not fit, [`Error::Unsupported`], or [`Error::Driver`].
    pub fn upload(device: &CudaDevice, model: &Model<'_>) -> Result<Self> {
        let head_dim = model.config().head_dim;
        if head_dim > WIDEST_HEAD {
            return Err(Error::Unsupported { field: "head_dim", found: head_dim, limit: WIDEST_HEAD });
        }
        let stream = device.stream()?;
        let advice = "take a model with fewer parameters, or quantise its embedding to int8 (trion quantize)";
        let memory = device.allocate(&stream, weights_bytes(model, device.kernel_set()), "the model", advice)?;
        let base = memory.device_ptr(&stream).0;
        let mut upload = Upload { base, stream, memory, used: 0 };

        let embedding = upload.matrix(model.embedding(), Packing::Twos)?;
        let head = if model.is_tied() { embedding } else { upload.matrix(model.head(), Packing::Twos)? };
        let norm = upload.floats(model.norm())?;
        let mut layers = Vec::with_capacity(model.layers().len());
        for layer in model.layers() {
            let mut projections = [DeviceLinear { matrix: embedding, norm: 0 }; Projection::ALL.len()];
            let packings = Packing::of_layer(device.kernel_set(), layer);
            for ((to, linear), packing) in projections.iter_mut().zip(&layer.projections).zip(packings) {
                let norm = linear.norm.map_or(Ok(0), |norm| upload.floats(norm))?;
                *to = DeviceLinear { matrix: upload.matrix(&linear.matrix, packing)?, norm };
            }
            let mut norms = [0; LayerNorm::ALL.len()];
            for (to, norm) in norms.iter_mut().zip(layer.norms) {
                *to = norm.map_or(Ok(0), |norm| upload.floats(norm))?;
            }
            layers.push(DeviceLayer { projections, norms });
        }
        // Sessions read the weights from streams of their own.
        upload.stream.synchronize().doing("copying weights")?;
        Ok(CudaModel(Arc::new(Inner {
            device: device.clone(),
            config: *model.config(),
            fingerprint: model.fingerprint(),
            first_cost: Session::row_blocks_per_token(model, 1),
            embedding,
            head,
            norm,
            layers,
            _memory: upload.memory,
        })))
    }

    /// Whether both are one upload.
    pub(crate) fn is_same(&self, other: &CudaModel) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The device it is on.
    pub fn device(&self) -> &CudaDevice {
        &self.0.device
    }

    /// Shapes and constants.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Row-blocks of a token that is number `positions` of its sequence, as [`Session::row_blocks_per_token`] counts
    /// them.
    pub(crate) fn row_blocks_per_token(&self, positions: usize) -> usize {
        let heads = self.0.config.num_hidden_layers * self.0.config.num_attention_heads;
        self.0.first_cost.saturating_add(heads.saturating_mul(positions / 32))
    }
}

/// Weights on their way to the device, one piece after the other.
struct Upload {
    stream: Arc<CudaStream>,
    memory: CudaSlice<u8>,
    base: u64,
    used: usize,
}

impl Upload {
    /// Copies bytes and gives their address; 0 for none.
    fn bytes(&mut self, bytes: &[u8]) -> Result<u64> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut piece = self.memory.slice_mut(self.used..self.used + bytes.len());
        self.stream.memcpy_htod(bytes, &mut piece).doing("copying weights")?;
        let address = self.base + self.used as u64;
        self.used += aligned(bytes.len());
        Ok(address)
    }

    fn floats(&mut self, values: &[f32]) -> Result<u64> {
        self.bytes(bytemuck::cast_slice(values))
    }

    fn matrix(&mut self, matrix: &Matrix<'_>, packing: Packing) -> Result<DeviceMatrix> {
        let [rows, cols] = matrix.shape();
        let kind = Kind::of(matrix).ok_or(Error::Int6)?;
        let (weights, scales) = matrix_image(matrix, packing);
        let (scale, span) = match matrix {
            Matrix::Ternary(m) => match m.rescale() {
                Rescale::Multiply(scale) | Rescale::Divide(scale) => (scale, cols),
                Rescale::Groups { size, .. } => (1.0, size),
            },
            Matrix::Float(_) | Matrix::Int6(_) => (1.0, 0),
        };
        let (weights, scales) = (self.bytes(&weights)?, self.bytes(&scales)?);
        Ok(DeviceMatrix { kind, packing, rows, cols, weights, scales, scale, span })
    }
}
