package diagnosis

import "testing"

// apt on a full disk ends by calling its lists damaged: that it could not write them is the cause.
func TestAFullDiskExplainsDamagedLists(t *testing.T) {
	const said = `E: Write error - write (28: No space left on device)
E: IO Error saving source cache
E: The package lists or status file could not be parsed or opened.
`
	if v, known := Cause(said); !known || v.ID != "no-space" {
		t.Errorf("got %v", v)
	}
}
