package cuda

import (
	"fmt"

	"gpuguest/internal/diagnosis"
)

// advice says what to do about a failure: what the catalogue of signatures knows of its CUDA error, else what
// its kind means.
func (f Failure) advice() string {
	if a := Advice(f.Code); a != "" {
		return a
	}
	return kinds[f.Kind]
}

// Advice is what the catalogue of signatures knows of a CUDA error, cause and remedy; "" nothing.
func Advice(code int) string {
	if code == 0 {
		return ""
	}
	v, ok := diagnosis.Cause(fmt.Sprintf("cuInit returned %d", code))
	if !ok {
		return ""
	}
	return v.Hint()
}

// kinds is what to do about a failure that no CUDA error explains.
var kinds = map[string]string{
	"library":        "cause: libcuda is missing, or not the driver's — install the driver's CUDA library: `gpuguest install` does",
	"count":          "cause: the driver does not serve every GPU of the guest to CUDA — read the kernel log: `gpuguest diagnose --host`; with MIG on, CUDA counts instances",
	"context":        "cause: the GPU takes no work — look for an Xid in the kernel log: `gpuguest diagnose --host`; power the VM off and on",
	"jit":            "cause: the driver's PTX compiler does not work — see that libnvidia-ptxjitcompiler is there and of the driver's version",
	"kernel":         "cause: the GPU gave up on a kernel — look for an Xid in the kernel log: `gpuguest diagnose --host`",
	"kernel-result":  "cause: the GPU computes wrong — stop using it; test it on another host, and have it replaced if it fails there",
	"memory-pattern": "cause: the GPU's memory does not keep what is written — stop using it; turn ECC on where it has it, and have it replaced",
	"copy":           "cause: data changes on its way to the GPU and back — look for PCIe errors (AER) in the host's kernel log; reseat the card",
	"link-bandwidth": "cause: copies are far slower than the PCIe link — on the host, look at IOMMU settings, ACS, the VM's memory (hugepages, NUMA node of the GPU) and whatever else uses the link",
	"uvm":            "cause: managed memory does not work — install with `--kernel-arg nvidia_uvm.uvm_disable_hmm=1`; see that /dev/nvidia-uvm exists",
	"peer":           "cause: what one GPU sends another arrives wrong or not at all — on the host, turn ACS redirection and the IOMMU's translation between the GPUs off, or do without peer access (NCCL_P2P_DISABLE=1)",
	"hang":           "cause: the GPU does not answer — look for an Xid in the kernel log: `gpuguest diagnose --host`; power the VM off and on, a reboot may not do",
	"crash":          "cause: the driver's library crashed — see that its version is the module's: `gpuguest verify`; look at the kernel log: `gpuguest diagnose --host`",
}
