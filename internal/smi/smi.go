// Package smi reads what "nvidia-smi -q -x" prints, in both of its document types: nvsmi_device_v12.dtd and, since
// branch 560, nvsmi_device_v13.dtd. The banner that nvidia-smi prints for people is never read: it has changed from
// release to release.
//
// It runs nothing. What a GPU does not tell ("N/A", an element that is not there, an error in its place) is
// unknown: nil or "".
package smi

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Log is one answer of nvidia-smi. Its names are part of the interface.
type Log struct {
	DTD    string `json:"dtd,omitempty"`    // "nvsmi_device_v13.dtd"
	Driver string `json:"driver,omitempty"` // version of the kernel module
	CUDA   string `json:"cuda,omitempty"`   // newest CUDA that the libraries serve, "13.0"
	GPUs   []GPU  `json:"gpus"`
	// Notes are worth a look and no failure: a link narrower than it could be, ECC errors that were corrected.
	Notes []string `json:"notes,omitempty"`
}

// GPU is what is read of one GPU. Serial numbers are not.
type GPU struct {
	PCI      string `json:"pci"` // as sysfs writes it: "0000:01:00.0"
	Name     string `json:"name,omitempty"`
	Arch     string `json:"arch,omitempty"`
	VBIOS    string `json:"vbios,omitempty"`
	GSP      string `json:"gsp_firmware,omitempty"` // version of the firmware that runs on the GPU; "" none does
	MIG      string `json:"mig,omitempty"`          // "Enabled", "Disabled"
	Recovery string `json:"recovery_action,omitempty"`

	LinkGen      *int `json:"link_gen,omitempty"` // at rest it falls back to 1
	LinkGenMax   *int `json:"link_gen_max,omitempty"`
	LinkWidth    *int `json:"link_width,omitempty"`
	LinkWidthMax *int `json:"link_width_max,omitempty"`
	Replays      *int `json:"replays,omitempty"` // of PCIe packets

	ECC              string `json:"ecc,omitempty"`                   // "Enabled", "Disabled"
	Uncorrected      *int   `json:"uncorrected,omitempty"`           // ECC errors since the driver was loaded
	UncorrectedTotal *int   `json:"uncorrected_aggregate,omitempty"` // in the GPU's life
	Retired          *int   `json:"retired_pages,omitempty"`         // for double bit errors; before Ampere
	RetirePending    string `json:"retirement_pending,omitempty"`    // "Yes", "No"
	Remapped         *int   `json:"remapped_rows,omitempty"`         // for uncorrectable errors; from Ampere on
	RemapPending     string `json:"remapping_pending,omitempty"`
	RemapFailed      string `json:"remapping_failed,omitempty"`

	Temperature *int   `json:"temperature,omitempty"` // degrees Celsius
	Fabric      string `json:"fabric,omitempty"`      // state of the NVLink fabric: "Completed"
}

// ErrNotXML is matched by the error for text in which nvidia-smi's document is not found whole.
var ErrNotXML = errors.New("not the XML of nvidia-smi")

// value is the text of an element. What stands in place of a value is none.
type value string

func (v value) text() string {
	s := strings.TrimSpace(string(v))
	switch {
	case s == "N/A", strings.HasPrefix(s, "Requested functionality has been deprecated"), strings.HasPrefix(s, "Unknown Error"), strings.HasPrefix(s, "GPU is lost"):
		return ""
	}
	return s
}

// number reads the leading figure of "16x", "41 C", "3"; nil for none.
func (v value) number() *int {
	s := v.text()
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	n, err := strconv.Atoi(s[:end])
	if err != nil {
		return nil
	}
	return &n
}

// errorCounts are ECC counters in their three forms: before Turing by single and double bits, then by SRAM and
// DRAM, and, from Ampere on, SRAM by parity and SEC-DED.
type errorCounts struct {
	Double value `xml:"double_bit>total"`
	SRAM   value `xml:"sram_uncorrectable"`
	Parity value `xml:"sram_uncorrectable_parity"`
	SECDED value `xml:"sram_uncorrectable_secded"`
	DRAM   value `xml:"dram_uncorrectable"`
}

func (e errorCounts) uncorrected() *int {
	var sum *int
	for _, v := range []value{e.Double, e.SRAM, e.Parity, e.SECDED, e.DRAM} {
		if n := v.number(); n != nil {
			if sum == nil {
				sum = new(int)
			}
			*sum += *n
		}
	}
	return sum
}

type document struct {
	XMLName xml.Name `xml:"nvidia_smi_log"`
	Driver  value    `xml:"driver_version"`
	KMD     value    `xml:"kmd_version"` // since 610, beside the older name, which is to go
	CUDA    value    `xml:"cuda_version"`
	UMD     value    `xml:"cuda_umd_version"`
	GPUs    []struct {
		ID       string `xml:"id,attr"`
		Name     value  `xml:"product_name"`
		Arch     value  `xml:"product_architecture"`
		VBIOS    value  `xml:"vbios_version"`
		GSP      value  `xml:"gsp_firmware_version"`
		MIG      value  `xml:"mig_mode>current_mig"`
		Recovery value  `xml:"gpu_recovery_action"`
		Link     struct {
			Gen      value `xml:"pcie_gen>current_link_gen"`
			GenMax   value `xml:"pcie_gen>max_link_gen"`
			Width    value `xml:"link_widths>current_link_width"`
			WidthMax value `xml:"link_widths>max_link_width"`
		} `xml:"pci>pci_gpu_link_info"`
		Replays   value       `xml:"pci>replay_counter"`
		ECC       value       `xml:"ecc_mode>current_ecc"`
		Volatile  errorCounts `xml:"ecc_errors>volatile"`
		Aggregate errorCounts `xml:"ecc_errors>aggregate"`
		Retired   struct {
			Double  value `xml:"double_bit_retirement>retired_count"`
			Pending value `xml:"pending_retirement"`
		} `xml:"retired_pages"`
		Remapped struct {
			Uncorrectable value `xml:"remapped_row_unc"`
			Pending       value `xml:"remapped_row_pending"`
			Failure       value `xml:"remapped_row_failure"`
		} `xml:"remapped_rows"`
		Temperature value `xml:"temperature>gpu_temp"`
		Fabric      value `xml:"fabric>state"`
	} `xml:"gpu"`
}

// Parse reads the document out of all that nvidia-smi printed; warnings ("infoROM is corrupted") may stand
// before and behind it.
func Parse(out []byte) (Log, error) {
	start := bytes.Index(out, []byte("<nvidia_smi_log"))
	if start < 0 {
		return Log{}, fmt.Errorf("%w: no nvidia_smi_log in it", ErrNotXML)
	}
	var doc document
	dec := xml.NewDecoder(bytes.NewReader(out[start:]))
	// It says no encoding, and names of vendors' boards have been seen in others than UTF-8.
	dec.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil }
	if err := dec.Decode(&doc); err != nil {
		return Log{}, fmt.Errorf("%w: %w", ErrNotXML, err)
	}
	l := Log{DTD: dtd(out[:start]), Driver: first(doc.KMD, doc.Driver), CUDA: first(doc.UMD, doc.CUDA)}
	for _, g := range doc.GPUs {
		l.GPUs = append(l.GPUs, GPU{
			PCI: Address(g.ID), Name: g.Name.text(), Arch: g.Arch.text(), VBIOS: g.VBIOS.text(), GSP: g.GSP.text(), MIG: g.MIG.text(), Recovery: g.Recovery.text(),
			LinkGen: g.Link.Gen.number(), LinkGenMax: g.Link.GenMax.number(), LinkWidth: g.Link.Width.number(), LinkWidthMax: g.Link.WidthMax.number(),
			Replays: g.Replays.number(),
			ECC:     g.ECC.text(), Uncorrected: g.Volatile.uncorrected(), UncorrectedTotal: g.Aggregate.uncorrected(),
			Retired: g.Retired.Double.number(), RetirePending: g.Retired.Pending.text(),
			Remapped: g.Remapped.Uncorrectable.number(), RemapPending: g.Remapped.Pending.text(), RemapFailed: g.Remapped.Failure.text(),
			Temperature: g.Temperature.number(), Fabric: g.Fabric.text(),
		})
	}
	l.Notes = l.notes()
	return l, nil
}

func first(all ...value) string {
	for _, v := range all {
		if s := v.text(); s != "" {
			return s
		}
	}
	return ""
}

// dtd is the name in the document type declaration, "" when there is none.
func dtd(head []byte) string {
	_, rest, ok := bytes.Cut(head, []byte(`<!DOCTYPE nvidia_smi_log SYSTEM "`))
	if !ok {
		return ""
	}
	name, _, ok := bytes.Cut(rest, []byte(`"`))
	if !ok || len(name) > 64 || bytes.ContainsAny(name, "\r\n<>") {
		return ""
	}
	return string(name)
}

// Address turns nvidia-smi's bus id, with a domain of eight digits and in capitals, into sysfs's:
// "00000000:01:00.0" into "0000:01:00.0". What is no bus id stays as it is.
func Address(id string) string {
	domain, rest, ok := strings.Cut(strings.ToLower(strings.TrimSpace(id)), ":")
	n, err := strconv.ParseUint(domain, 16, 32)
	if !ok || err != nil {
		return id
	}
	return fmt.Sprintf("%04x:%s", n, rest)
}

// Faults are what no GPU that works may show; driver is the version of the loaded module, "" not to be compared.
// Each names its GPU.
func (l Log) Faults(driver string) []string {
	var all []string
	for _, g := range l.GPUs {
		fault := func(format string, args ...any) { all = append(all, g.PCI+": "+fmt.Sprintf(format, args...)) }
		if g.GSP != "" && driver != "" && g.GSP != driver {
			fault("the firmware on the GPU is %s, the driver is %s", g.GSP, driver)
		}
		switch g.Recovery {
		case "", "None":
		default:
			// "Drain P2P", "Reset", "Drain and Reset", "Reboot": Xid 154 in the kernel log says the same.
			fault("the driver asks for a recovery of the GPU: %s", g.Recovery)
		}
		if g.RemapFailed == "Yes" {
			fault("the GPU ran out of spare memory rows: have it replaced")
		}
		if g.Uncorrected != nil && *g.Uncorrected > 0 {
			fault("%d ECC errors that could not be corrected since the driver was loaded", *g.Uncorrected)
		}
	}
	return all
}

// notes are what a person should know although it is no failure.
func (l Log) notes() []string {
	var all []string
	for _, g := range l.GPUs {
		note := func(format string, args ...any) { all = append(all, g.PCI+": "+fmt.Sprintf(format, args...)) }
		if g.LinkWidth != nil && g.LinkWidthMax != nil && *g.LinkWidth < *g.LinkWidthMax {
			note("its PCIe link is x%d and could be x%d", *g.LinkWidth, *g.LinkWidthMax)
		}
		if g.RetirePending == "Yes" || g.RemapPending == "Yes" {
			note("bad memory waits to be taken out of use: reset the GPU or reboot")
		}
		if g.Retired != nil && *g.Retired > 0 {
			note("%d pages of its memory are retired", *g.Retired)
		}
		if g.Remapped != nil && *g.Remapped > 0 {
			note("%d rows of its memory are remapped", *g.Remapped)
		}
		if g.MIG == "Enabled" {
			note("MIG is on: CUDA sees instances and not the GPU")
		}
	}
	return all
}
