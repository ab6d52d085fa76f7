//! Where tensors live.

use burn::tensor::Device;

/// The CPU of this machine. It is named, never guessed from what happens to be compiled in.
#[must_use]
pub fn cpu() -> Device {
    Device::flex()
}
