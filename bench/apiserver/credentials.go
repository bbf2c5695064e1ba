// Copyright Authors of Waggle
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

// Credentials are the files that the server and its clients prove themselves
// with. They outlive a restart, so that clients needn't notice one.
type Credentials struct {
	certificate, certificateKey string
	serviceAccountKey           string
	tokens                      string
	// Kubeconfig is the path of the kubeconfig file of the cluster's admin.
	Kubeconfig string

	address netip.AddrPort
}

// WriteCredentials creates them in dir, for a server at that address.
func WriteCredentials(dir string, address netip.AddrPort) (Credentials, error) {
	c := Credentials{
		address:           address,
		certificate:       filepath.Join(dir, "apiserver.crt"),
		certificateKey:    filepath.Join(dir, "apiserver.key"),
		serviceAccountKey: filepath.Join(dir, "service-account.key"),
		tokens:            filepath.Join(dir, "tokens.csv"),
		Kubeconfig:        filepath.Join(dir, "kubeconfig"),
	}

	chain, chainKey, err := cert.GenerateSelfSignedCertKey(address.Addr().String(), []net.IP{address.Addr().AsSlice()}, nil)
	if err != nil {
		return c, fmt.Errorf("generating the serving certificate: %w", err)
	}
	accountKey, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return c, fmt.Errorf("generating the service account key: %w", err)
	}
	token := rand.Text()
	for path, content := range map[string][]byte{
		c.certificate:       chain,
		c.certificateKey:    chainKey,
		c.serviceAccountKey: accountKey,
		// Token, user, UID, groups. The group is bound to cluster-admin.
		c.tokens: fmt.Appendf(nil, "%s,admin,admin,system:masters\n", token),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return c, err
		}
	}

	const name = "test"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{
		Server: "https://" + address.String(),
		// By content, not by path: client-go follows a CA file's changes with a
		// goroutine that lives as long as the process.
		CertificateAuthorityData: chain,
	}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	if err := clientcmd.WriteToFile(*config, c.Kubeconfig); err != nil {
		return c, fmt.Errorf("writing the kubeconfig: %w", err)
	}
	return c, nil
}

// flags are the server's flags that name these files.
func (c Credentials) flags() []string {
	return []string{
		"--tls-cert-file=" + c.certificate,
		"--tls-private-key-file=" + c.certificateKey,
		"--service-account-key-file=" + c.serviceAccountKey,
		"--service-account-signing-key-file=" + c.serviceAccountKey,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--token-auth-file=" + c.tokens,
	}
}
