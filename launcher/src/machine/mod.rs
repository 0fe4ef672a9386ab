//! GPUs of this machine, and the placement of shards on them. The environment and the kernel's device files tell: no
//! library of the vendor is loaded.

pub mod report;

use std::fs;
use std::path::Path;

use gridwork_settings::{Device, Processes};

/// Shards that do not fit on the machine.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "--num-shard {shards} needs as many GPUs, {visible} visible; lower --num-shard, or check CUDA_VISIBLE_DEVICES"
    )]
    TooFewDevices { shards: u32, visible: u32 },
    #[error(
        "--device cuda, but no NVIDIA GPU is visible; check CUDA_VISIBLE_DEVICES and that the container was given the GPU \
         (docker: --gpus all), or use --device cpu"
    )]
    NoDevice,
    #[error(
        "--cpu-threads {threads} is more than the {cores} cores that may be used, and threads that share a core wait for \
         each other; give {cores} or less, or leave it out"
    )]
    TooManyThreads { threads: u32, cores: u32 },
}

/// The machine's NVIDIA GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpus {
    /// Number of GPUs that processes may use.
    pub visible: u32,
    /// Name of the first GPU; empty when unknown.
    pub name: String,
}

impl Gpus {
    /// Reads `CUDA_VISIBLE_DEVICES`, else `NVIDIA_VISIBLE_DEVICES`, else counts `/dev/nvidia0` and on.
    pub fn detect() -> Self {
        let variable = |name| std::env::var(name).ok();
        let visible = count_visible(
            device_files(),
            variable("CUDA_VISIBLE_DEVICES").as_deref(),
            variable("NVIDIA_VISIBLE_DEVICES").as_deref(),
        );
        let name = if visible > 0 {
            first_name().unwrap_or_default()
        } else {
            String::new()
        };
        Self { visible, name }
    }
}

/// Counts visible GPUs. A variable that is not set is `None`; `existing` is `None` where a driver does not tell its
/// number of GPUs. A list can name fewer devices than exist, never more.
fn count_visible(existing: Option<u32>, cuda: Option<&str>, nvidia: Option<&str>) -> u32 {
    let named = |list| existing.map_or(count_list(list), |n| n.min(count_list(list)));
    match (cuda, nvidia) {
        (Some(list), _) if list != "all" => named(list),
        (_, Some("all") | None) => existing.unwrap_or(1),
        (_, Some(list)) => named(list),
    }
}

/// Counts devices up to the first invalid one: CUDA ignores everything after `-1`.
fn count_list(list: &str) -> u32 {
    list.split(',')
        .map(str::trim)
        .take_while(|device| !matches!(*device, "" | "-1" | "void" | "none" | "NoDevFiles"))
        .count() as u32
}

/// Counts `/dev/nvidia0` and on. Some drivers have none (WSL, Jetson).
fn device_files() -> Option<u32> {
    let entries = fs::read_dir("/dev").ok()?;
    let numbered = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("nvidia"));
            number.is_some_and(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit()))
        })
        .count() as u32;
    let unnumbered = ["/dev/dxg", "/dev/nvmap"];
    let uncountable = numbered == 0 && unnumbered.iter().any(|path| Path::new(path).exists());
    (!uncountable).then_some(numbered)
}

/// Returns the name in the kernel driver's description of the first GPU.
fn first_name() -> Option<String> {
    let gpu = fs::read_dir("/proc/driver/nvidia/gpus")
        .ok()?
        .flatten()
        .next()?;
    let text = fs::read_to_string(gpu.path().join("information")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
    Some(line.trim().to_owned())
}

/// Device and number of the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub device: Device,
    pub num_shard: u32,
    /// Number of threads of each shard; `None` leaves it to the shard.
    pub cpu_threads: Option<u32>,
}

impl Placement {
    /// Chooses device, shards and threads. `cores` is the number of processors that this process may use.
    pub fn choose(args: &Processes, gpus: &Gpus, cores: u32) -> Result<Self, DeviceError> {
        let device = args.device.unwrap_or(if gpus.visible > 0 {
            Device::Cuda
        } else {
            Device::Cpu
        });
        let by_default = match (device, args.sharded) {
            (Device::Cuda, Some(false)) | (Device::Cpu, _) => 1,
            (Device::Cuda, _) => gpus.visible.max(1),
        };
        let num_shard = args.num_shard.unwrap_or(by_default);
        if device == Device::Cuda {
            if gpus.visible == 0 {
                return Err(DeviceError::NoDevice);
            }
            if num_shard > gpus.visible {
                return Err(DeviceError::TooFewDevices {
                    shards: num_shard,
                    visible: gpus.visible,
                });
            }
        }
        if let Some(threads) = args.cpu_threads.filter(|threads| *threads > cores) {
            return Err(DeviceError::TooManyThreads { threads, cores });
        }
        // Told to the shards even when one has all: they do not see that a control group allows fewer cores.
        let shared = (device == Device::Cpu).then(|| (cores / num_shard).max(1));
        Ok(Self {
            device,
            num_shard,
            cpu_threads: args.cpu_threads.or(shared),
        })
    }

    /// Value of the header `x-compute-type`: `cpu`, or `2-nvidia-h200`.
    pub fn compute_type(&self, gpus: &Gpus) -> String {
        match self.device {
            Device::Cpu => "cpu".to_owned(),
            Device::Cuda if gpus.name.is_empty() => format!("{}-gpu", self.num_shard),
            Device::Cuda => {
                let name = gpus.name.to_lowercase();
                let words: Vec<&str> = name.split_whitespace().collect();
                format!("{}-{}", self.num_shard, words.join("-"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use gridwork_settings::try_parse;

    use super::*;

    fn gpus(visible: u32) -> Gpus {
        Gpus {
            visible,
            name: "NVIDIA H200".to_owned(),
        }
    }

    fn choose(args: &[&str], visible: u32) -> Result<Placement, DeviceError> {
        let cli = try_parse([&["gridwork", "--model-id", "m"], args].concat()).unwrap();
        Placement::choose(&cli.processes, &gpus(visible), 8)
    }

    #[test]
    fn visible_devices_are_counted() {
        for (existing, cuda, nvidia, expected) in [
            (Some(0), None, None, 0),
            (Some(4), None, None, 4),
            (Some(4), Some("1,2"), None, 2),
            (Some(4), Some("0,-1,2"), None, 1),
            (Some(4), Some(""), None, 0),
            (Some(4), Some("-1"), Some("all"), 0),
            (Some(4), None, Some("all"), 4),
            (Some(4), None, Some("void"), 0),
            (Some(0), None, Some("all"), 0),
            (Some(0), Some("0"), None, 0),
            (Some(2), Some("0,1,2"), None, 2),
            (Some(4), None, Some("GPU-1,GPU-2"), 2),
            (None, Some("0"), None, 1),
            (None, None, None, 1),
        ] {
            let found = count_visible(existing, cuda, nvidia);
            assert_eq!(found, expected, "{existing:?} {cuda:?} {nvidia:?}");
        }
    }

    #[test]
    fn the_device_follows_the_machine_unless_given() {
        assert_eq!(choose(&[], 0).unwrap().device, Device::Cpu);
        let both = choose(&[], 2).unwrap();
        assert_eq!((both.device, both.num_shard), (Device::Cuda, 2));
        let cpu = choose(&["--device", "cpu"], 2).unwrap();
        assert_eq!((cpu.device, cpu.num_shard), (Device::Cpu, 1));
        assert_eq!(choose(&["--sharded", "false"], 2).unwrap().num_shard, 1);
    }

    #[test]
    fn more_shards_than_gpus_are_refused() {
        assert!(matches!(
            choose(&["--num-shard", "3"], 2),
            Err(DeviceError::TooFewDevices { .. })
        ));
        assert!(matches!(
            choose(&["--device", "cuda"], 0),
            Err(DeviceError::NoDevice)
        ));
        assert_eq!(choose(&["--num-shard", "3"], 0).unwrap().num_shard, 3);
    }

    #[test]
    fn shards_on_cpu_share_the_cores() {
        assert_eq!(choose(&[], 0).unwrap().cpu_threads, Some(8));
        assert_eq!(choose(&[], 1).unwrap().cpu_threads, None);
        assert_eq!(
            choose(&["--num-shard", "3"], 0).unwrap().cpu_threads,
            Some(2)
        );
        let given = choose(&["--num-shard", "3", "--cpu-threads", "5"], 0).unwrap();
        assert_eq!(given.cpu_threads, Some(5));
    }

    #[test]
    fn more_threads_than_cores_are_refused() {
        let all = choose(&["--cpu-threads", "8"], 0).unwrap();
        assert_eq!(all.cpu_threads, Some(8));
        let message = choose(&["--cpu-threads", "9"], 0).unwrap_err().to_string();
        assert!(message.contains("8 cores"), "{message}");
    }

    #[test]
    fn the_compute_type_names_number_and_card() {
        assert_eq!(
            choose(&[], 2).unwrap().compute_type(&gpus(2)),
            "2-nvidia-h200"
        );
        assert_eq!(choose(&[], 0).unwrap().compute_type(&gpus(0)), "cpu");
    }
}
