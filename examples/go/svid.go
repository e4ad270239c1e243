package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// serverName is the one DNS name in the certificate of a nexus, and in nobody else's.
const serverName = "nexus.shardhold"

// svidFiles is an X.509-SVID as spiffe-helper writes it: svid.pem, svid_key.pem and bundle.pem in one folder.
type svidFiles struct {
	folder string
}

// tlsConfig reads the files for each new connection, so that rotation needs no restart.
//
// A Go configuration can read its own certificate anew, but not the authorities of its peer. Go's verification is
// therefore turned off, and verify does the same against the bundle of the moment.
func (f svidFiles) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		ServerName:           serverName,
		GetClientCertificate: f.loadCertificate,
		InsecureSkipVerify:   true,
		VerifyConnection:     f.verify,
	}
}

func (f svidFiles) loadCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	certificate, err := tls.LoadX509KeyPair(f.path("svid.pem"), f.path("svid_key.pem"))
	return &certificate, err
}

// verify checks the chain of the server, its dates, and that it is a nexus of this trust domain.
func (f svidFiles) verify(state tls.ConnectionState) error {
	bundle, err := os.ReadFile(f.path("bundle.pem"))
	if err != nil {
		return err
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM(bundle) {
		return fmt.Errorf("%s has no certificate", f.path("bundle.pem"))
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	for _, certificate := range state.PeerCertificates[1:] {
		intermediates.AddCert(certificate)
	}
	_, err = state.PeerCertificates[0].Verify(
		x509.VerifyOptions{DNSName: serverName, Roots: roots, Intermediates: intermediates},
	)
	return err
}

func (f svidFiles) path(name string) string {
	return filepath.Join(f.folder, name)
}
