//! The rated memory bandwidth of GPUs.

/// Driver names and rated bandwidths in GB/s, from the vendors' data sheets.
const RATED: [(&str, f64); 24] = [
    ("NVIDIA B200", 8000.0),
    ("NVIDIA H200", 4800.0),
    ("NVIDIA H200 NVL", 4800.0),
    ("NVIDIA H100 80GB HBM3", 3350.0),
    ("NVIDIA H100 NVL", 3938.0),
    ("NVIDIA H100 PCIe", 2039.0),
    ("NVIDIA A100-SXM4-80GB", 2039.0),
    ("NVIDIA A100-SXM4-40GB", 1555.0),
    ("NVIDIA A100 80GB PCIe", 1935.0),
    ("NVIDIA A100-PCIE-40GB", 1555.0),
    ("NVIDIA A40", 696.0),
    ("NVIDIA A10", 600.0),
    ("NVIDIA A10G", 600.0),
    ("NVIDIA L40S", 864.0),
    ("NVIDIA L40", 864.0),
    ("NVIDIA L4", 300.0),
    ("Tesla T4", 320.0),
    ("Tesla V100-SXM2-16GB", 900.0),
    ("Tesla V100-SXM2-32GB", 900.0),
    ("NVIDIA RTX A6000", 768.0),
    ("NVIDIA RTX 6000 Ada Generation", 960.0),
    ("NVIDIA GeForce RTX 3090", 936.0),
    ("NVIDIA GeForce RTX 4090", 1008.0),
    ("NVIDIA GeForce RTX 5090", 1792.0),
];

/// Returns the rated bandwidth of a card in GB/s. `gpu` is the name of a machine line: `NAME (BACKEND, DRIVER)`.
///
/// The whole name must match: MIG slices and laptop GPUs have names with the same beginning.
pub(crate) fn of(gpu: &str) -> Option<f64> {
    let name = gpu.rsplit_once(" (").map_or(gpu, |(name, _)| name);
    RATED.into_iter().find(|(known, _)| *known == name).map(|(_, rated)| rated)
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn only_whole_names_match() {
        assert_eq!(of("NVIDIA H100 80GB HBM3 (vulkan, 580.159.04)"), Some(3350.0));
        assert_eq!(of("NVIDIA L40S"), Some(864.0));
        for unknown in
            ["NVIDIA H100 80GB HBM3 MIG 1g.10gb (vulkan, 1)", "NVIDIA GeForce RTX 4090 Laptop GPU", ""]
        {
            assert_eq!(of(unknown), None, "{unknown}");
        }
    }
}
