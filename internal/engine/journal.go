package engine

import (
	"encoding/json"
	"strings"
	"time"

	"gpuguest/steps"
)

// Record is one line of the journal that gpuguest keeps in the guest, in /var/lib/gpuguest/journal.
type Record struct {
	Time    time.Time `json:"time"`
	Boot    string    `json:"boot"`  // boot_id when it was written
	Event   string    `json:"event"` // "begin", "end", "failed", "reboot", "uninstalled", "picked" (a flavor, by the unit that both-flavors leaves); of a remedy "try", "kept", "undone", "back"
	Step    steps.ID  `json:"step,omitempty"`
	AtBoot  bool      `json:"at_boot,omitempty"` // the step's change takes effect at the next boot
	Exit    int       `json:"exit,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Driver  string    `json:"driver,omitempty"` // branch or version that the plan asked for
	Flavor  string    `json:"flavor,omitempty"`
	Source  string    `json:"source,omitempty"`
	Modules string    `json:"modules,omitempty"`
	Remedy  string    `json:"remedy,omitempty"` // what is tried: "kernel-arg pci=realloc"
	Cause   string    `json:"cause,omitempty"`  // id of the verdict that it is tried for
	With    string    `json:"with,omitempty"`   // the driver and the kernel that it is tried with
}

// ParseJournal reads the journal. A line that is no record, as a power cut may leave, is passed over and
// counted.
func ParseJournal(raw string) (records []Record, torn int) {
	for line := range strings.Lines(raw) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			torn++
			continue
		}
		records = append(records, r)
	}
	return records, torn
}

// Owed returns the steps whose change waits for a boot: begun under this boot_id and taking effect at the
// next one. The answer expires by itself when the guest boots, whoever boots it.
func Owed(records []Record, boot string) []steps.ID {
	var owed []steps.ID
	seen := make(map[steps.ID]bool)
	for _, r := range records {
		if r.Event == "begin" && r.AtBoot && r.Boot == boot && !seen[r.Step] {
			seen[r.Step] = true
			owed = append(owed, r.Step)
		}
	}
	return owed
}
