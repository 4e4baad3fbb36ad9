package main

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"gpuguest/internal/choice"
	"gpuguest/steps"
)

// proxyVariable is where --proxy is taken from when it is not given: a password in it is then in no argument of
// gpuguest's own either.
const proxyVariable = "GPUGUEST_PROXY"

// stretching is how often the salt that a password's file gets is hashed: a fifth of a second of one core.
const stretching = 600_000

// readProxy makes of a proxy's URL what plans may tell of it, and the file that tells the guest. Errors hold nothing of
// the URL, which may hold a password.
func readProxy(text string) (choice.Proxy, []byte, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return choice.Proxy{}, nil, errors.New("--proxy: it is no URL; special characters of a password are written as %40 and the like")
	case u.Scheme != "http" && u.Scheme != "https":
		return choice.Proxy{}, nil, errors.New("--proxy: it begins with http:// or https://")
	case u.Hostname() == "":
		return choice.Proxy{}, nil, errors.New("--proxy: its host is missing, as in http://proxy.example:3128")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return choice.Proxy{}, nil, errors.New("--proxy: it is a host and a port, without a path")
	}
	clean := url.URL{Scheme: u.Scheme, User: u.User, Host: u.Host}
	full := clean.String()
	if strings.ContainsAny(full, " \t\r\n'\"\\`") {
		return choice.Proxy{}, nil, errors.New("--proxy: a character in it must be written as %22 and the like")
	}
	file := "# Written by gpuguest: the way out for its own work in this guest.\n" +
		"http_proxy='" + full + "' https_proxy='" + full + "' HTTPS_PROXY='" + full + "' no_proxy=localhost,127.0.0.1,::1\n" +
		"APT_CONFIG=" + steps.ProxyConfig + "\n" +
		"export http_proxy https_proxy HTTPS_PROXY no_proxy APT_CONFIG\n"
	if u.User != nil {
		// The file's checksum is in plans and in the guest's records: guessing a password by it must take its time.
		salt, err := pbkdf2.Key(sha256.New, full, []byte("gpuguest proxy"), stretching, sha256.Size)
		if err != nil {
			return choice.Proxy{}, nil, fmt.Errorf("--proxy: %w", err)
		}
		file += "# " + hex.EncodeToString(salt) + "\n"
	}
	sum := sha256.Sum256([]byte(file))
	clean.User = nil
	return choice.Proxy{Shown: clean.String(), SHA256: hex.EncodeToString(sum[:])}, []byte(file), nil
}
