package guest

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

// Target is where a user said a guest is. Port 0 and User "" mean that nothing was said.
type Target struct {
	Host string
	Port int
	User string
}

// String is the target as ParseTarget reads it back.
func (t Target) String() string {
	s := t.Host
	switch {
	case strings.Contains(s, ":"):
		s = "[" + s + "]"
		fallthrough
	default:
		if t.Port != 0 {
			s += ":" + strconv.Itoa(t.Port)
		}
	}
	if t.User != "" {
		s = t.User + "@" + s
	}
	return s
}

// ParseTarget reads "vm", "root@vm:5022", "[fe80::1%eth0]:22", a bare IPv6 address, or ssh://user@host:port.
func ParseTarget(s string) (Target, error) {
	bad := func(why string) (Target, error) {
		return Target{}, fmt.Errorf("host %q: %s", s, why)
	}
	rest := s
	if r, ok := strings.CutPrefix(s, "ssh://"); ok {
		rest = strings.TrimSuffix(r, "/")
		if dec, err := url.PathUnescape(rest); err == nil {
			rest = dec
		}
	}
	if strings.ContainsFunc(rest, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == unicode.ReplacementChar }) {
		return bad("blanks and control characters are not allowed")
	}
	var t Target
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		t.User, rest = rest[:i], rest[i+1:]
		if t.User == "" {
			return bad("no user name before @")
		}
		if strings.HasPrefix(t.User, "-") {
			return bad("a user name does not begin with -")
		}
	}
	port := ""
	hasPort := false
	switch {
	case strings.HasPrefix(rest, "["):
		i := strings.IndexByte(rest, ']')
		if i < 0 {
			return bad("no closing ]")
		}
		t.Host = rest[1:i]
		if after := rest[i+1:]; after != "" {
			port, hasPort = strings.CutPrefix(after, ":")
			if !hasPort {
				return bad("only a port may follow ]")
			}
		}
	case strings.Count(rest, ":") == 1:
		t.Host, port, hasPort = strings.Cut(rest, ":")
	default:
		t.Host = rest // no port, or an IPv6 address without brackets
	}
	if hasPort {
		n, err := parsePort(port)
		if err != nil {
			return bad(err.Error())
		}
		t.Port = n
	}
	switch {
	case t.Host == "":
		return bad("no host name")
	case strings.HasPrefix(t.Host, "-"):
		return bad("a host name does not begin with -")
	case strings.ContainsAny(t.Host, "/[]@,"):
		return bad("not a host name")
	}
	return t, nil
}

func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, errors.New("the port must be a number from 1 to 65535")
	}
	return int(n), nil
}
