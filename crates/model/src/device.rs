//! Where tensors live.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
#[cfg(feature = "wgpu")]
use burn::tensor::{DeviceKind, DeviceType};

/// The CPU of this machine. It is named, never guessed from what happens to be compiled in.
#[must_use]
pub fn cpu() -> Device {
    Device::flex()
}

/// Who computes, as a person names it. What cannot be had is an error, never another device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// `cpu`: the CPU of this machine.
    #[default]
    Cpu,
    /// `wgpu`, `wgpu:INDEX` or `wgpu:cpu`: through Vulkan, Metal or Direct3D 12. It needs a program
    /// that was built with the feature `wgpu`.
    Wgpu(Gpu),
}

/// Which of the devices behind Vulkan, Metal or Direct3D 12.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gpu {
    /// The first GPU that the graphics interface shows.
    Best,
    /// One of the GPUs that it shows, counted from 0.
    Index(usize),
    /// A driver that computes on the CPU, to try things out without a GPU.
    Software,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Wgpu(Gpu::Best) => f.write_str("wgpu"),
            Self::Wgpu(Gpu::Index(index)) => write!(f, "wgpu:{index}"),
            Self::Wgpu(Gpu::Software) => f.write_str("wgpu:cpu"),
        }
    }
}

/// A name that is no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a device: use cpu, wgpu for a GPU, wgpu:0, wgpu:1 and so on for one of several, \
     or wgpu:cpu for a software driver"
)]
pub struct UnknownDevice(String);

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        let gpu = match name.strip_prefix("wgpu") {
            None if name == "cpu" => return Ok(Self::Cpu),
            Some("") => Some(Gpu::Best),
            Some(":cpu") => Some(Gpu::Software),
            Some(rest) => {
                rest.strip_prefix(':').and_then(|index| index.parse().ok()).map(Gpu::Index)
            }
            None => None,
        };
        gpu.map(Self::Wgpu).ok_or_else(|| UnknownDevice(name.to_owned()))
    }
}

/// A device that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoDevice {
    /// The program knows no GPU.
    #[error(
        "device {0}: this program was built without GPU support: build it with `--features wgpu`, \
         or use device cpu"
    )]
    NotBuilt(DeviceChoice),
    /// The machine shows no such GPU.
    #[error(
        "device {choice}: found {found} GPUs with a driver for Vulkan, Metal or Direct3D 12 (they \
         are counted from 0): install the GPU's driver, name another GPU, or use device cpu"
    )]
    NoGpu {
        /// What was asked for.
        choice: DeviceChoice,
        /// How many GPUs there are.
        found: usize,
    },
    /// The machine has no driver that computes on the CPU.
    #[error(
        "device {choice}: found no software driver for Vulkan, Metal or Direct3D 12: install one, \
         such as the Debian package mesa-vulkan-drivers, or use device cpu"
    )]
    NoSoftwareDriver {
        /// What was asked for.
        choice: DeviceChoice,
    },
}

impl DeviceChoice {
    /// The device.
    ///
    /// # Errors
    /// A GPU or driver that this machine does not have, or a program that was built without GPU
    /// support; the error tells what was looked for, and what to install or build.
    pub fn open(self) -> Result<Device, NoDevice> {
        match self {
            Self::Cpu => Ok(cpu()),
            Self::Wgpu(gpu) => open_wgpu(gpu),
        }
    }
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu(gpu: Gpu) -> Result<Device, NoDevice> {
    Err(NoDevice::NotBuilt(DeviceChoice::Wgpu(gpu)))
}

/// Burn creates the device with its first tensor and panics if there is none: what there is, is
/// listed first.
#[cfg(feature = "wgpu")]
fn open_wgpu(gpu: Gpu) -> Result<Device, NoDevice> {
    let software = Device::wgpu(DeviceKind::Cpu);
    let all = Device::enumerate(DeviceType::Wgpu).into_iter();
    let (software, gpus): (Vec<Device>, Vec<Device>) = all.partition(|device| *device == software);
    let (choice, found) = (DeviceChoice::Wgpu(gpu), gpus.len());
    let device = match gpu {
        // Not the default device, which the environment may turn into the software driver.
        Gpu::Best => gpus.into_iter().next(),
        Gpu::Index(index) => gpus.into_iter().nth(index),
        Gpu::Software => {
            return software.into_iter().next().ok_or(NoDevice::NoSoftwareDriver { choice });
        }
    };
    device.ok_or(NoDevice::NoGpu { choice, found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let gpus = [Gpu::Best, Gpu::Index(0), Gpu::Index(12), Gpu::Software];
        for choice in gpus.map(DeviceChoice::Wgpu).into_iter().chain([DeviceChoice::Cpu]) {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("wgpu:1".parse(), Ok(DeviceChoice::Wgpu(Gpu::Index(1))));
        for name in ["", "gpu", "cuda", "wgpu:", "wgpu:-1", "wgpu1", "cpu:0"] {
            let error = name.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.contains("wgpu:cpu") && error.contains(name), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_told_and_nothing_else_taken() {
        assert_eq!(DeviceChoice::default().open(), Ok(cpu()));
        // No machine has that many GPUs.
        let many = DeviceChoice::Wgpu(Gpu::Index(1000));
        let error = many.open().unwrap_err().to_string();
        let help = if cfg!(feature = "wgpu") { "driver" } else { "--features wgpu" };
        assert!(error.contains("device wgpu:1000") && error.contains(help), "{error}");
        for gpu in [Gpu::Best, Gpu::Software] {
            assert_ne!(DeviceChoice::Wgpu(gpu).open(), Ok(cpu()));
        }
    }
}
