//! A model's weights on a GPU, and the scratch memory there of its sessions that advance together.

use std::sync::{Mutex, PoisonError};

use trion_core::{Model as CoreModel, Parallel, Progress};
use trion_cuda::{CudaBatch, CudaDevice, CudaModel, CudaSession};

use crate::batch::Batch;
use crate::error::Result;

/// What a model has on a GPU. Sessions share it; it is freed with the last of them and of the models.
pub(crate) struct Placed {
    model: CudaModel,
    /// Made by the first call that needs it, and made anew for more sessions or longer ones.
    together: Mutex<Option<CudaBatch>>,
}

impl Placed {
    /// Copies the weights to the GPU.
    pub(crate) fn new(device: &CudaDevice, model: &CoreModel<'_>) -> Result<Self> {
        Ok(Placed { model: CudaModel::upload(device, model)?, together: Mutex::new(None) })
    }

    /// The weights.
    pub(crate) fn model(&self) -> &CudaModel {
        &self.model
    }

    /// Advances sessions together, one call at a time.
    pub(crate) fn advance(
        &self,
        sessions: &mut [&mut CudaSession],
        budget: usize,
        parallel: &dyn Parallel,
    ) -> Result<Progress> {
        // Every call writes what it reads there, so a panic in another one left nothing half-done.
        let mut together = self.together.lock().unwrap_or_else(PoisonError::into_inner);
        let context = sessions.iter().map(|session| session.options().context).max().unwrap_or(1);
        let had = together.as_ref().map_or((0, 0), CudaBatch::room);
        if sessions.len() > had.0 || context > had.1 {
            // The old memory is given back before more is asked for.
            *together = None;
        }
        let batch = match &mut *together {
            Some(batch) => batch,
            none => {
                // Not anew for each session that comes.
                let most = sessions.len().next_power_of_two().min(Batch::MAX_SESSIONS).max(had.0);
                none.insert(CudaBatch::new(&self.model, most, context.max(had.1))?)
            }
        };
        Ok(batch.advance(sessions, budget, parallel)?)
    }
}
