"""What data sheets say about GPUs, and the two assumptions that estimates need besides.

Imports no torch: settings of commands take their defaults from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import InputError

DEFAULT_EFFICIENCY = 0.45  # share of a GPU's peak that the network's matrix products reach; assumed
DEFAULT_MEMORY_RESERVE = 0.1  # share of a GPU's memory left to driver, communication and fragmentation
FALLBACK_GPU = "H100"  # its speed orders the layouts of a GPU without a data sheet


@dataclass(frozen=True, slots=True)
class DataSheet:
    """One GPU, by a part of its device name.

    Attributes:
        name: Part of the device's name.
        bf16: Dense peak in bf16, TFLOP/s.
        fp32: Dense peak in fp32 without TF32, TFLOP/s.
        node_bandwidth: NVLink, or PCIe where there is none: bytes a second in one direction.
        network_bandwidth: One network card for each GPU, as in the vendor's own machines.
        host_bandwidth: PCIe to the host.
    """

    name: str
    bf16: float
    fp32: float
    node_bandwidth: float
    network_bandwidth: float
    host_bandwidth: float


# More specific names before more general ones. Source: the vendors' data sheets.
DATA_SHEETS = (
    DataSheet("B200", 2250.0, 75.0, 900e9, 50e9, 63e9),
    DataSheet("H200", 989.4, 67.0, 450e9, 50e9, 63e9),
    DataSheet("H100 NVL", 835.0, 60.0, 300e9, 50e9, 63e9),
    DataSheet("H100 PCIe", 756.0, 51.0, 64e9, 50e9, 63e9),
    DataSheet("H100", 989.4, 67.0, 450e9, 50e9, 63e9),
    DataSheet("A100", 312.0, 19.5, 300e9, 25e9, 32e9),
    DataSheet("L40S", 362.0, 91.6, 32e9, 25e9, 32e9),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the step time is estimated from.

    Attributes:
        peak: Dense bf16 FLOP/s of one GPU.
        efficiency: Share of the peak that the network's matrix products reach; not a measurement.
        node_gpus: GPUs of one node.
        node_bandwidth: Bytes a second that a GPU sends to others of its node.
        network_bandwidth: Bytes a second that a GPU sends to other nodes.
        host_bandwidth: Bytes a second between a GPU and its host.
        host_memory_bandwidth: Bytes a second of the host's memory, for each of its GPUs.
        hop: Latency in seconds of one step of a ring over nodes; not a measurement.
        contention: Share of what runs beside something longer that delays the step all the same: collectives
            take multiprocessors and memory bandwidth, and nothing overlaps from end to end; assumed.
        launch: Seconds in which Python starts the kernels of a layer, both passes of a micro-batch; assumed.
        hooks: Seconds of stage 3's hooks around the modules of a layer, both passes; assumed (on two busy CPU
            cores stage 3 took 3 to 11 ms a layer more than stage 0, collectives of one rank included).
    """

    peak: float
    efficiency: float = DEFAULT_EFFICIENCY
    node_gpus: int = 8
    node_bandwidth: float = 450e9
    network_bandwidth: float = 50e9
    host_bandwidth: float = 63e9
    host_memory_bandwidth: float = 40e9
    hop: float = 3e-6
    contention: float = 0.1
    launch: float = 1e-3
    hooks: float = 3e-3

    @classmethod
    def of_gpu(cls, gpu: str, efficiency: float, node_gpus: int) -> Machine:
        """Nodes of `node_gpus` GPUs of the given device name.

        Raises:
            InputError: The GPU has no data sheet here.
        """
        sheet = data_sheet(gpu)
        if sheet is None:
            names = ", ".join(sheet.name for sheet in DATA_SHEETS)
            raise InputError(f"gpu={gpu}: not in the table of data sheets; expected one of {names}")
        return cls(
            1e12 * sheet.bf16,
            efficiency,
            node_gpus,
            sheet.node_bandwidth,
            sheet.network_bandwidth,
            sheet.host_bandwidth,
        )

    @classmethod
    def of_device(cls, device: str, node_gpus: int) -> Machine:
        """Nodes of a device by its name; one without a data sheet counts as `FALLBACK_GPU`."""
        gpu = device if data_sheet(device) is not None else FALLBACK_GPU
        return cls.of_gpu(gpu, DEFAULT_EFFICIENCY, node_gpus)


def data_sheet(gpu: str) -> DataSheet | None:
    """Data sheet of a GPU by its device name; None for one that is not listed."""
    return next((sheet for sheet in DATA_SHEETS if sheet.name in gpu), None)


def known_peak_flops(gpu: str, precision: str) -> float | None:
    """Peak FLOP/s of a GPU by its device name; None for one that is not listed.

    Args:
        gpu: Device name, as `torch.cuda.get_device_name` gives it.
        precision: `bf16` or `fp32`.
    """
    sheet = data_sheet(gpu)
    if sheet is None:
        return None
    return 1e12 * (sheet.bf16 if precision == "bf16" else sheet.fp32)
