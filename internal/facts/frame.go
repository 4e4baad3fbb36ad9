package facts

// Line is one line of a section.
type Line struct {
	No   int // its number in the script's output, from 1
	Text string
}

// Section is one section of a script's output.
type Section struct {
	Lines   []Line
	Reasons []string // why it is not (fully) known
}

// Sections cuts the output of another script that frames as facts.sh does, with a head line of its own, into
// its sections. Output that was cut off is ErrTruncated.
func Sections(raw []byte, head string) (map[string]Section, error) {
	parts, err := split(raw, head)
	if err != nil {
		return nil, err
	}
	all := make(map[string]Section, len(parts))
	for name, p := range parts {
		s := Section{Reasons: p.reasons}
		for _, l := range p.lines {
			s.Lines = append(s.Lines, Line{No: l.no, Text: l.text})
		}
		all[name] = s
	}
	return all, nil
}
