//go:build !linux

package bake

import (
	"errors"
	"os"
	"syscall"
)

var errOnlyLinux = errors.New("images are baked on Linux")

func tryLock(*os.File) error { return errOnlyLinux }

func dieWithUs() *syscall.SysProcAttr { return nil }

// FreeSpace is not known here.
func FreeSpace(string) (Space, error) { return Space{}, errOnlyLinux }

func taking(string) int64 { return 0 }
