package assets

import _ "embed"

// StepLibrary is the shell text in front of every step's script: assets/step.sh.
//
//go:embed step.sh
var StepLibrary string
