//! Where a model computes.

use std::str::FromStr;

use crate::error::{Error, Result};

/// A name of a device, as a user writes it. The logits are the same on every one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceName {
    /// `cpu`: the caller's threads.
    #[default]
    Cpu,
    /// `cuda` or `cuda:1`: an NVIDIA GPU, by its number in the driver's order.
    Cuda(usize),
    /// `auto`: the first NVIDIA GPU if there is one that works, the CPU otherwise.
    Auto,
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let refuse = || Error::Argument(format!("{name:?} is no device; expected cpu, cuda, cuda:NUMBER or auto"));
        match name {
            "cpu" => Ok(DeviceName::Cpu),
            "cuda" => Ok(DeviceName::Cuda(0)),
            "auto" => Ok(DeviceName::Auto),
            _ => {
                let number = name.strip_prefix("cuda:").ok_or_else(refuse)?;
                number.parse().map(DeviceName::Cuda).map_err(|_| refuse())
            }
        }
    }
}

/// A device that a model can be put on ([`crate::Model::on`]). Cloning shares it.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Device {
    /// The caller's threads.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(trion_cuda::CudaDevice),
}

impl Device {
    /// Finds a device. For [`DeviceName::Auto`] a missing or failing GPU is no error.
    ///
    /// # Errors
    /// [`Error::Cuda`] if there is no such GPU; [`Error::Argument`] in a build without the feature `cuda`.
    #[cfg(feature = "cuda")]
    pub fn open(name: DeviceName) -> Result<Self> {
        match name {
            DeviceName::Cpu => Ok(Device::Cpu),
            DeviceName::Cuda(index) => Ok(Device::Cuda(trion_cuda::CudaDevice::open(index)?)),
            DeviceName::Auto => Ok(trion_cuda::CudaDevice::open(0).map_or(Device::Cpu, Device::Cuda)),
        }
    }

    /// Finds a device. For [`DeviceName::Auto`] a missing or failing GPU is no error.
    ///
    /// # Errors
    /// [`Error::Argument`] for a GPU: this build has none.
    #[cfg(not(feature = "cuda"))]
    pub fn open(name: DeviceName) -> Result<Self> {
        match name {
            DeviceName::Cpu | DeviceName::Auto => Ok(Device::Cpu),
            DeviceName::Cuda(_) => {
                Err(Error::Argument("this build of Trion knows no GPU: it lacks the feature `cuda`".to_owned()))
            }
        }
    }

    /// A name for people: `cpu`, or the GPU's.
    pub fn name(&self) -> &str {
        match self {
            Device::Cpu => "cpu",
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => device.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read() {
        let names = ["cpu", "cuda", "cuda:0", "cuda:12", "auto"].map(|name| name.parse::<DeviceName>().unwrap());
        let [zero, twelve] = [0, 12].map(DeviceName::Cuda);
        assert_eq!(names, [DeviceName::Cpu, zero, zero, twelve, DeviceName::Auto]);
        for name in ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda1"] {
            assert!(name.parse::<DeviceName>().is_err(), "{name}");
        }
    }

    /// True on a machine with a GPU and on one without: what matters is that nothing panics, and that the error says
    /// why.
    #[test]
    fn a_gpu_that_is_not_there_is_an_error_with_a_reason() {
        assert_eq!(Device::open(DeviceName::Cpu).unwrap().name(), "cpu");
        assert!(Device::open(DeviceName::Auto).is_ok());
        let Err(error) = Device::open(DeviceName::Cuda(1_000)) else { panic!("a thousand GPUs") };
        let expected =
            if cfg!(feature = "cuda") { ["NVIDIA driver", "GPU number 1000"] } else { ["feature `cuda`"; 2] };
        assert!(expected.iter().any(|part| error.to_string().contains(part)), "{error}");
    }
}
