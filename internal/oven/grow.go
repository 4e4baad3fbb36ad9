package oven

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"strings"
	"time"

	"gpuguest/internal/guest"
)

// GrowScript is grow.sh, whose call grow an oven that mounts an image makes by itself.
//
//go:embed grow.sh
var GrowScript string

// growLimit is how long growing may take. An online resize writes the tables of the new groups, seconds where the
// guest is emulated.
const growLimit = 10 * time.Minute

// growRoot has a guest's root fill its disk, and returns why it does not, "" when it does.
func growRoot(ctx context.Context, conn *guest.Conn) (string, error) {
	res, err := conn.Run(ctx, guest.Command{Script: GrowScript + "\ngrow_root\n", Timeout: growLimit})
	if err != nil || res.Exit == 0 {
		return "", err
	}
	return cmp.Or(LastLine(string(res.Stdout)), LastLine(string(res.Stderr)), fmt.Sprintf("exit %d", res.Exit)), nil
}

// LastLine is the last line of what grow.sh's calls print: why the root was not grown.
func LastLine(said string) string {
	said = strings.TrimSpace(said)
	return strings.TrimSpace(said[strings.LastIndexByte(said, '\n')+1:])
}
