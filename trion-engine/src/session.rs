//! A session that owns its memory and shares its model.

#[cfg(feature = "cuda")]
use std::sync::Arc;

use self_cell::{MutBorrow, self_cell};
use trion_core::{Kernel, Observation, Parallel, Progress, Sampler, Session as CoreSession, SessionOptions};

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::map::{MmapMut, zeros};
use crate::model::Model;
#[cfg(feature = "cuda")]
use crate::placed::Placed;

struct Owner {
    model: Model,
    memory: MutBorrow<MmapMut>,
}

/// Both lifetimes of the core's session are that of the owner.
type Borrowed<'a> = CoreSession<'a, 'a>;

self_cell!(
    struct Cell {
        owner: Owner,

        #[covariant]
        dependent: Borrowed,
    }
);

/// A [`CoreSession`] with its model and its memory; or, for a model on a GPU ([`Model::on`]), one that computes there,
/// with the same bits. On the CPU nothing is allocated after it is made.
pub struct Session {
    place: Place,
}

/// Where a session computes.
enum Place {
    Cpu {
        cell: Cell,
        kernel: Kernel,
    },
    #[cfg(feature = "cuda")]
    Cuda(Box<OnGpu>),
}

/// A session on a GPU.
#[cfg(feature = "cuda")]
pub(crate) struct OnGpu {
    model: Model,
    pub(crate) placed: Arc<Placed>,
    pub(crate) session: trion_cuda::CudaSession,
    /// Row-blocks of the last call, which is several of the session's.
    pub(crate) spent: usize,
}

/// Calls a method that both kinds of session have.
macro_rules! either {
    ($self:ident, $session:ident => $call:expr) => {
        match &$self.place {
            Place::Cpu { cell, .. } => {
                let $session = cell.borrow_dependent();
                $call
            }
            #[cfg(feature = "cuda")]
            Place::Cuda(on_gpu) => {
                let $session = &on_gpu.session;
                $call
            }
        }
    };
    (mut $self:ident, $session:ident => $call:expr) => {
        match &mut $self.place {
            Place::Cpu { cell, .. } => Ok(cell.with_dependent_mut(|_, $session| $call)?),
            #[cfg(feature = "cuda")]
            Place::Cuda(on_gpu) => {
                let $session = &mut on_gpu.session;
                Ok($call?)
            }
        }
    };
}

impl Session {
    /// A session on the fastest kernel of this CPU, or on the model's GPU.
    ///
    /// # Errors
    /// [`Error::Core`] for options outside their range, [`Error::Memory`] if there is not enough memory,
    /// [`Error::Cuda`] if there is not enough on the GPU, or it fails.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Self> {
        Self::with_kernel(model, options, Kernel::detect())
    }

    /// A session on a kernel of the caller's choice; the results are the same. A GPU has no choice of kernels.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn with_kernel(model: &Model, options: SessionOptions, kernel: Kernel) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Some(placed) = &model.cuda {
            let session = trion_cuda::CudaSession::new(placed.model(), options)?;
            let (model, placed) = (model.clone(), Arc::clone(placed));
            return Ok(Session { place: Place::Cuda(Box::new(OnGpu { model, placed, session, spent: 0 })) });
        }
        Ok(Session { place: Place::Cpu { cell: cell_of(model, options, kernel)?, kernel } })
    }

    /// A session with the same tokens, cache and logits, which goes its own way from here.
    ///
    /// # Errors
    /// [`Error::Memory`] or [`Error::Cuda`] if there is not enough memory.
    pub fn fork(&self) -> Result<Self> {
        match &self.place {
            Place::Cpu { cell, kernel } => {
                let core = cell.borrow_dependent();
                let mut copy = cell_of(&cell.borrow_owner().model, *core.options(), *kernel)?;
                copy.with_dependent_mut(|_, copy| copy.fork_from(core))?;
                Ok(Session { place: Place::Cpu { cell: copy, kernel: *kernel } })
            }
            #[cfg(feature = "cuda")]
            Place::Cuda(on_gpu) => {
                let (model, placed) = (on_gpu.model.clone(), Arc::clone(&on_gpu.placed));
                let session = on_gpu.session.fork()?;
                Ok(Session { place: Place::Cuda(Box::new(OnGpu { model, placed, session, spent: 0 })) })
            }
        }
    }

    /// Takes over the tokens, cache and logits of `other`, in memory that is there already. See
    /// [`CoreSession::fork_from`]; the two may compute on different devices.
    ///
    /// # Errors
    /// [`Error::Core`]; the session is unchanged. [`Error::Cuda`] if a GPU fails.
    pub fn fork_from(&mut self, other: &Session) -> Result<()> {
        match (&mut self.place, &other.place) {
            (Place::Cpu { cell, .. }, Place::Cpu { cell: other, .. }) => {
                Ok(cell.with_dependent_mut(|_, session| session.fork_from(other.borrow_dependent()))?)
            }
            #[cfg(feature = "cuda")]
            (Place::Cuda(on_gpu), Place::Cuda(other)) => Ok(on_gpu.session.fork_from(&other.session)?),
            #[cfg(feature = "cuda")]
            _ => {
                let (found, limit) = (other.tokens().len(), self.options().context);
                if found > limit {
                    return Err(Error::Core(trion_core::Error::ContextOverflow { found, limit }));
                }
                self.load(&other.save()?)
            }
        }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        match &self.place {
            Place::Cpu { cell, .. } => &cell.borrow_owner().model,
            #[cfg(feature = "cuda")]
            Place::Cuda(on_gpu) => &on_gpu.model,
        }
    }

    /// See [`CoreSession::options`].
    pub fn options(&self) -> &SessionOptions {
        either!(self, session => session.options())
    }

    /// See [`CoreSession::tokens`].
    pub fn tokens(&self) -> &[u32] {
        either!(self, session => session.tokens())
    }

    /// See [`CoreSession::pending`].
    pub fn pending(&self) -> usize {
        either!(self, session => session.pending())
    }

    /// See [`CoreSession::push`].
    ///
    /// # Errors
    /// [`Error::Core`]; the session is unchanged.
    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        either!(mut self, session => session.push(tokens))
    }

    /// See [`CoreSession::advance`]. A GPU computes whole batches, and is cancelled between two of them.
    ///
    /// # Errors
    /// [`Error::Core`] if no token was pushed, [`Error::Cuda`] if the GPU fails.
    pub fn advance(&mut self, budget: usize, parallel: &dyn Parallel) -> Result<Progress> {
        let progress = self.compute(budget, parallel)?;
        if progress == Progress::Ready {
            self.read_logits()?;
        }
        Ok(progress)
    }

    /// [`Session::advance`], but a GPU keeps the logits to itself: [`Session::logits`] has none until
    /// [`Session::read_logits`] or [`Session::advance`] copies them. [`Session::sample`] does without, where it can.
    ///
    /// # Errors
    /// As [`Session::advance`].
    pub fn compute(&mut self, budget: usize, parallel: &dyn Parallel) -> Result<Progress> {
        match &mut self.place {
            Place::Cpu { cell, .. } => Ok(cell.with_dependent_mut(|_, core| core.advance(budget, parallel))?),
            #[cfg(feature = "cuda")]
            Place::Cuda(on_gpu) => {
                let OnGpu { session, spent, .. } = &mut **on_gpu;
                *spent = 0;
                // Each batch is waited for, so that a prompt can be cancelled between two.
                while !parallel.cancelled() {
                    let progress = session.compute(budget.min(1))?;
                    *spent = spent.saturating_add(session.spent());
                    if progress == Progress::Ready || *spent >= budget {
                        return Ok(progress);
                    }
                }
                Ok(Progress::More)
            }
        }
    }

    /// See [`CoreSession::advance_observed`].
    ///
    /// # Errors
    /// [`Error::Core`] if no token was pushed, [`Error::Argument`] on a GPU, which shows nothing of its way.
    pub fn advance_observed(
        &mut self,
        budget: usize,
        parallel: &dyn Parallel,
        observer: &mut dyn FnMut(Observation<'_>),
    ) -> Result<Progress> {
        match &mut self.place {
            Place::Cpu { cell, .. } => {
                Ok(cell.with_dependent_mut(|_, core| core.advance_observed(budget, parallel, observer))?)
            }
            #[cfg(feature = "cuda")]
            Place::Cuda(_) => Err(Error::Argument("a session on a GPU cannot be observed".to_owned())),
        }
    }

    /// Adds itself to a batch.
    pub(crate) fn join<'s>(&'s mut self, batch: &mut Batch<'s>) -> Result<()> {
        match &mut self.place {
            Place::Cpu { cell, .. } => cell.with_dependent_mut(|_, core| batch.add_core(core)),
            #[cfg(feature = "cuda")]
            Place::Cuda(on_gpu) => batch.add_on_gpu(on_gpu),
        }
    }

    /// See [`CoreSession::spent`].
    pub fn spent(&self) -> usize {
        match &self.place {
            Place::Cpu { cell, .. } => cell.borrow_dependent().spent(),
            #[cfg(feature = "cuda")]
            Place::Cuda(on_gpu) => on_gpu.spent,
        }
    }

    /// Pushes tokens, computes them all and gives the logits `[rows, vocab_size]`.
    ///
    /// # Errors
    /// As [`Session::push`] and [`Session::advance`].
    pub fn evaluate(&mut self, tokens: &[u32], parallel: &dyn Parallel) -> Result<&[f32]> {
        self.push(tokens)?;
        while self.advance(usize::MAX, parallel)? == Progress::More {}
        Ok(self.logits().unwrap_or(&[]))
    }

    /// See [`CoreSession::logits`].
    pub fn logits(&self) -> Option<&[f32]> {
        either!(self, session => session.logits())
    }

    /// Copies the logits that [`Session::compute`] left on a GPU, if any, for [`Session::logits`].
    ///
    /// # Errors
    /// [`Error::Cuda`] if the GPU fails.
    pub fn read_logits(&mut self) -> Result<()> {
        match &mut self.place {
            Place::Cpu { .. } => Ok(()),
            #[cfg(feature = "cuda")]
            Place::Cuda(on_gpu) => Ok(on_gpu.session.read_logits()?),
        }
    }

    /// The token that [`Sampler::sample`] chooses by the logits of the last token computed and the tokens of the
    /// session; 0 if no logits are ready. A GPU gives the largest logits alone where [`Sampler::candidates`] says that
    /// they suffice; the choice is the same.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the GPU fails.
    pub fn sample(&mut self, sampler: &mut Sampler) -> Result<u32> {
        #[cfg(feature = "cuda")]
        if let Place::Cuda(on_gpu) = &mut self.place {
            let session = &mut on_gpu.session;
            let most = trion_cuda::CudaSession::MOST_CANDIDATES;
            let enough = sampler.candidates(session.tokens().len()).filter(|count| *count <= most);
            if let Some(count) = enough.filter(|_| session.has_logits()) {
                return Ok(sampler.sample_candidates(&session.top_k(count)?, session.tokens()));
            }
        }
        self.read_logits()?;
        Ok(sampler.sample(self.last_logits(), self.tokens()))
    }

    /// The logits of the last token computed; none while they are not here.
    pub(crate) fn last_logits(&self) -> &[f32] {
        let logits = self.logits().unwrap_or(&[]);
        &logits[logits.len().saturating_sub(self.model().config().vocab_size)..]
    }

    /// See [`CoreSession::rewind`].
    ///
    /// # Errors
    /// [`Error::Core`] if there are fewer tokens.
    pub fn rewind(&mut self, len: usize) -> Result<()> {
        either!(mut self, session => session.rewind(len))
    }

    /// The state in bytes, for [`Session::load`] of any session of this model, wherever it computes.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the GPU fails.
    pub fn save(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.saved_bytes()];
        self.save_to(&mut bytes)?;
        Ok(bytes)
    }

    /// See [`CoreSession::saved_bytes`].
    pub fn saved_bytes(&self) -> usize {
        either!(self, session => session.saved_bytes())
    }

    /// [`Session::save`] into memory of the caller's. See [`CoreSession::save`].
    ///
    /// # Errors
    /// [`Error::Core`] if it is too small, [`Error::Cuda`] if the GPU fails.
    pub fn save_to(&self, out: &mut [u8]) -> Result<usize> {
        either!(self, session => Ok(session.save(out)?))
    }

    /// See [`CoreSession::load`].
    ///
    /// # Errors
    /// [`Error::Core`]; the session is unchanged. [`Error::Cuda`] if the GPU fails.
    pub fn load(&mut self, saved: &[u8]) -> Result<()> {
        either!(mut self, session => session.load(saved))
    }
}

/// A session of the core with its memory.
fn cell_of(model: &Model, options: SessionOptions, kernel: Kernel) -> Result<Cell> {
    let config = model.config();
    let longest = config.max_position_embeddings;
    for (field, found, limit) in
        [("context", options.context, longest), ("max_batch", options.max_batch, options.context)]
    {
        // Before any memory is asked for.
        if found == 0 || found > limit {
            return Err(Error::Core(trion_core::Error::Options { field, found, limit }));
        }
    }
    let memory = MutBorrow::new(zeros(CoreSession::bytes(config, &options))?);
    Ok(Cell::try_new(Owner { model: model.clone(), memory }, |owner| {
        CoreSession::new(owner.model.core(), options, kernel, owner.memory.borrow_mut())
    })?)
}

#[cfg(test)]
mod tests {
    use trion_core::{Matrix, Projection, Rescale, Serial};

    use super::*;
    use crate::pack::{FloatFormat, PackOptions};
    use crate::random::random_model;

    /// What an observer sees, with everything that it must agree with checked on the way: layers, projections,
    /// positions.
    fn observe(session: &mut Session, budget: usize) -> Vec<String> {
        let mut seen = Vec::new();
        let model = session.model().clone();
        loop {
            let progress = session.advance_observed(budget, &Serial, &mut |observation| match observation {
                Observation::Hidden { layer, first, values } => seen.push(format!("{layer:?} {first} {values:?}")),
                Observation::Projection { layer, projection, first, input } => {
                    let matrix = &model.core().layers()[layer].projection(projection).matrix;
                    assert_eq!(matrix.shape()[1], input.cols());
                    for token in 0..input.tokens() {
                        let (x, q) = (input.floats(token), input.quantized(token));
                        let s = input.scales(token).next().expect("a scale");
                        assert_eq!((x.len(), q.len(), input.scales(token).len()), (input.cols(), input.cols(), 1));
                        for (x, q) in x.iter().zip(q) {
                            assert_eq!((x * s).round_ties_even() as i8, *q, "layer {layer}, {projection:?}");
                        }
                        seen.push(format!("{layer} {projection:?} {first} {token} {s} {x:?}"));
                    }
                    assert!(input.floats(input.tokens()).is_empty());
                }
                Observation::Head { first, input } => seen.push(format!("head {first} {:?}", input.floats(0))),
            });
            if progress.expect("there are tokens") == Progress::Ready {
                return seen;
            }
        }
    }

    fn model() -> Model {
        let config = trion_core::Config {
            hidden_size: 64,
            intermediate_size: 96,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 16,
            vocab_size: 50,
            max_position_embeddings: 32,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-5,
            projection_norm_eps: 1e-5,
            hidden_act: trion_core::Activation::Relu2,
            activation_group: 0,
        };
        random_model(&config, &PackOptions { embedding: FloatFormat::F16, ..PackOptions::default() }, 3)
            .expect("a valid configuration")
    }

    #[test]
    fn sessions_move_between_threads() {
        fn moves<T: Send + Sync>() {}
        moves::<Session>();
        moves::<Model>();
    }

    #[test]
    fn a_session_takes_over_what_another_has() {
        let model = model();
        let session = |context, max_batch| {
            Session::new(&model, SessionOptions { max_batch, ..SessionOptions::new(context) }).expect("a session")
        };
        let mut from = session(8, 2);
        from.push(&[1, 7, 3]).expect("room");
        assert_eq!(from.advance(1, &Serial).expect("tokens"), Progress::More);
        let mut bytes = vec![0; from.saved_bytes()];
        assert_eq!(from.save_to(&mut bytes).expect("room"), bytes.len());
        assert_eq!(bytes, from.save().expect("bytes"));
        assert!(from.save_to(&mut bytes[1..]).is_err());

        let mut to = session(16, 5);
        to.evaluate(&[4], &Serial).expect("logits");
        to.fork_from(&from).expect("room");
        assert_eq!(to.save().expect("bytes"), bytes);
        let logits = to.evaluate(&[2], &Serial).expect("logits").to_vec();
        assert_eq!(from.evaluate(&[2], &Serial).expect("logits"), logits);
        assert!(matches!(
            session(3, 1).fork_from(&from),
            Err(Error::Core(trion_core::Error::ContextOverflow { found: 4, limit: 3 }))
        ));
    }

    #[test]
    fn a_token_is_chosen_by_the_last_row_of_logits() {
        let options = trion_core::SamplerOptions { temperature: 1.0, top_k: 5, ..trion_core::SamplerOptions::GREEDY };
        for logits in [trion_core::Logits::Last, trion_core::Logits::All] {
            let options_all = SessionOptions { logits, max_batch: 4, ..SessionOptions::new(8) };
            let mut session = Session::new(&model(), options_all).expect("a session");
            let mut sampler = Sampler::new(options).expect("options");
            let mut expected = sampler;
            assert_eq!(session.sample(&mut sampler).expect("a token"), 0);
            session.push(&[1, 7, 3]).expect("room");
            assert_eq!(session.compute(usize::MAX, &Serial).expect("tokens"), Progress::Ready);
            session.read_logits().expect("logits");
            let all = session.logits().expect("logits");
            let token = expected.sample(&all[all.len() - 50..], &[1, 7, 3]);
            assert_eq!(session.sample(&mut sampler).expect("a token"), token);
            assert_eq!(sampler, expected);
        }
    }

    #[test]
    fn an_observer_sees_every_stage_once_and_changes_nothing() {
        let model = model();
        let tokens = [1, 7, 3, 30, 5];
        let options = SessionOptions { max_batch: 2, ..SessionOptions::new(8) };
        let mut plain = Session::new(&model, options).expect("a session");
        let logits = plain.evaluate(&tokens, &Serial).expect("logits").to_vec();
        let mut all = Vec::new();
        for budget in [usize::MAX, 3, 1] {
            let mut session = Session::new(&model, options).expect("a session");
            session.push(&tokens).expect("room");
            all.push(observe(&mut session, budget));
            assert_eq!(session.logits().expect("logits"), logits);
        }
        // Three batches of an embedding and two blocks with an output each; a row for each token and input; a head.
        assert_eq!(all[0].len(), 3 * 3 + 5 * 2 * 4 + 1);
        assert_eq!(all[0], all[1]);
        assert_eq!(all[0], all[2]);
    }

    #[test]
    fn a_pass_goes_on_from_integers_that_an_observer_puts_in() {
        let model = model();
        let options = SessionOptions { max_batch: 4, ..SessionOptions::new(8) };
        let run = |replace: &dyn Fn(i8) -> i8| {
            let mut session = Session::new(&model, options).expect("a session");
            session.push(&[9, 4, 2]).expect("room");
            let progress = session.advance_observed(usize::MAX, &Serial, &mut |observation| {
                if let Observation::Projection { layer: 1, projection: Projection::Output, mut input, .. } = observation
                {
                    let value = input.quantized(2)[5];
                    input.replace(2, 5, replace(value));
                    assert_eq!(input.quantized(2)[5], replace(value));
                    // Beyond the tokens and beyond the columns.
                    let (tokens, cols) = (input.tokens(), input.cols());
                    input.replace(tokens, 0, 1);
                    input.replace(0, cols, 1);
                }
            });
            assert_eq!(progress.expect("there are tokens"), Progress::Ready);
            session.logits().expect("logits").to_vec()
        };
        let mut plain = Session::new(&model, options).expect("a session");
        let logits = plain.evaluate(&[9, 4, 2], &Serial).expect("logits");
        assert_eq!(run(&|value| value), logits);
        assert_ne!(run(&|value| value.wrapping_add(40)), logits);
    }

    #[test]
    fn sums_of_what_is_observed_give_the_residual_stream() {
        let model = model();
        let mut session =
            Session::new(&model, SessionOptions { max_batch: 1, ..SessionOptions::new(8) }).expect("a session");
        session.push(&[9]).expect("room");
        let (mut expected, mut blocks) = (Vec::new(), 0);
        let progress = session.advance_observed(usize::MAX, &Serial, &mut |observation| match observation {
            Observation::Hidden { layer: None, values, .. } => expected = values.to_vec(),
            Observation::Hidden { values, .. } => {
                assert_eq!(values, expected);
                blocks += 1;
            }
            Observation::Projection {
                layer, projection: p @ (Projection::Output | Projection::Down), input, ..
            } => {
                let Matrix::Ternary(matrix) = &model.core().layers()[layer].projection(p).matrix else {
                    panic!("{p:?} is not ternary");
                };
                let mut sums = vec![0; matrix.rows()];
                matrix.sums(Kernel::detect(), input.quantized(0), &mut sums).expect("lengths fit");
                let s = input.scales(0).next().expect("a scale");
                for (h, sum) in expected.iter_mut().zip(sums) {
                    *h += match matrix.rescale() {
                        Rescale::Multiply(m) => sum as f32 / s * m,
                        Rescale::Divide(d) => sum as f32 / (d * s),
                        Rescale::Groups { .. } => panic!("{p:?} has groups"),
                    };
                }
            }
            _ => {}
        });
        assert_eq!(progress.expect("there are tokens"), Progress::Ready);
        assert_eq!(blocks, 2);
    }
}
