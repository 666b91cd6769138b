package dev.consentd.v1;

import static io.grpc.MethodDescriptor.generateFullMethodName;

/**
 * <pre>
 * Answers, from memory, whether a business may message a user.
 * A denial is an OK response that says why. Errors mean that no decision was made, and a client
 * that gets one must not send: INVALID_ARGUMENT for a malformed request, UNAVAILABLE before the
 * first load, RESOURCE_EXHAUSTED under overload, DEADLINE_EXCEEDED when min_revision did not arrive.
 * </pre>
 */
@io.grpc.stub.annotations.GrpcGenerated
public final class ConsentServiceGrpc {

  private ConsentServiceGrpc() {}

  public static final java.lang.String SERVICE_NAME = "consent.v1.ConsentService";

  // Static method descriptors that strictly reflect the proto.
  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.CanSendRequest,
      dev.consentd.v1.CanSendResponse> getCanSendMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "CanSend",
      requestType = dev.consentd.v1.CanSendRequest.class,
      responseType = dev.consentd.v1.CanSendResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.CanSendRequest,
      dev.consentd.v1.CanSendResponse> getCanSendMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.CanSendRequest, dev.consentd.v1.CanSendResponse> getCanSendMethod;
    if ((getCanSendMethod = ConsentServiceGrpc.getCanSendMethod) == null) {
      synchronized (ConsentServiceGrpc.class) {
        if ((getCanSendMethod = ConsentServiceGrpc.getCanSendMethod) == null) {
          ConsentServiceGrpc.getCanSendMethod = getCanSendMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.CanSendRequest, dev.consentd.v1.CanSendResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "CanSend"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.CanSendRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.CanSendResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ConsentServiceMethodDescriptorSupplier("CanSend"))
              .build();
        }
      }
    }
    return getCanSendMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.BatchCanSendRequest,
      dev.consentd.v1.BatchCanSendResponse> getBatchCanSendMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "BatchCanSend",
      requestType = dev.consentd.v1.BatchCanSendRequest.class,
      responseType = dev.consentd.v1.BatchCanSendResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.BatchCanSendRequest,
      dev.consentd.v1.BatchCanSendResponse> getBatchCanSendMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.BatchCanSendRequest, dev.consentd.v1.BatchCanSendResponse> getBatchCanSendMethod;
    if ((getBatchCanSendMethod = ConsentServiceGrpc.getBatchCanSendMethod) == null) {
      synchronized (ConsentServiceGrpc.class) {
        if ((getBatchCanSendMethod = ConsentServiceGrpc.getBatchCanSendMethod) == null) {
          ConsentServiceGrpc.getBatchCanSendMethod = getBatchCanSendMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.BatchCanSendRequest, dev.consentd.v1.BatchCanSendResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "BatchCanSend"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.BatchCanSendRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.BatchCanSendResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ConsentServiceMethodDescriptorSupplier("BatchCanSend"))
              .build();
        }
      }
    }
    return getBatchCanSendMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.StreamCanSendRequest,
      dev.consentd.v1.StreamCanSendResponse> getStreamCanSendMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "StreamCanSend",
      requestType = dev.consentd.v1.StreamCanSendRequest.class,
      responseType = dev.consentd.v1.StreamCanSendResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.BIDI_STREAMING)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.StreamCanSendRequest,
      dev.consentd.v1.StreamCanSendResponse> getStreamCanSendMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.StreamCanSendRequest, dev.consentd.v1.StreamCanSendResponse> getStreamCanSendMethod;
    if ((getStreamCanSendMethod = ConsentServiceGrpc.getStreamCanSendMethod) == null) {
      synchronized (ConsentServiceGrpc.class) {
        if ((getStreamCanSendMethod = ConsentServiceGrpc.getStreamCanSendMethod) == null) {
          ConsentServiceGrpc.getStreamCanSendMethod = getStreamCanSendMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.StreamCanSendRequest, dev.consentd.v1.StreamCanSendResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.BIDI_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "StreamCanSend"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.StreamCanSendRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.StreamCanSendResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ConsentServiceMethodDescriptorSupplier("StreamCanSend"))
              .build();
        }
      }
    }
    return getStreamCanSendMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.FilterRecipientsRequest,
      dev.consentd.v1.FilterRecipientsResponse> getFilterRecipientsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "FilterRecipients",
      requestType = dev.consentd.v1.FilterRecipientsRequest.class,
      responseType = dev.consentd.v1.FilterRecipientsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.BIDI_STREAMING)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.FilterRecipientsRequest,
      dev.consentd.v1.FilterRecipientsResponse> getFilterRecipientsMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.FilterRecipientsRequest, dev.consentd.v1.FilterRecipientsResponse> getFilterRecipientsMethod;
    if ((getFilterRecipientsMethod = ConsentServiceGrpc.getFilterRecipientsMethod) == null) {
      synchronized (ConsentServiceGrpc.class) {
        if ((getFilterRecipientsMethod = ConsentServiceGrpc.getFilterRecipientsMethod) == null) {
          ConsentServiceGrpc.getFilterRecipientsMethod = getFilterRecipientsMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.FilterRecipientsRequest, dev.consentd.v1.FilterRecipientsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.BIDI_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "FilterRecipients"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.FilterRecipientsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.FilterRecipientsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ConsentServiceMethodDescriptorSupplier("FilterRecipients"))
              .build();
        }
      }
    }
    return getFilterRecipientsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.GetConsentRequest,
      dev.consentd.v1.GetConsentResponse> getGetConsentMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "GetConsent",
      requestType = dev.consentd.v1.GetConsentRequest.class,
      responseType = dev.consentd.v1.GetConsentResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.GetConsentRequest,
      dev.consentd.v1.GetConsentResponse> getGetConsentMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.GetConsentRequest, dev.consentd.v1.GetConsentResponse> getGetConsentMethod;
    if ((getGetConsentMethod = ConsentServiceGrpc.getGetConsentMethod) == null) {
      synchronized (ConsentServiceGrpc.class) {
        if ((getGetConsentMethod = ConsentServiceGrpc.getGetConsentMethod) == null) {
          ConsentServiceGrpc.getGetConsentMethod = getGetConsentMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.GetConsentRequest, dev.consentd.v1.GetConsentResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "GetConsent"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.GetConsentRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.GetConsentResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ConsentServiceMethodDescriptorSupplier("GetConsent"))
              .build();
        }
      }
    }
    return getGetConsentMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.WatchConsentsRequest,
      dev.consentd.v1.WatchConsentsResponse> getWatchConsentsMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "WatchConsents",
      requestType = dev.consentd.v1.WatchConsentsRequest.class,
      responseType = dev.consentd.v1.WatchConsentsResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.WatchConsentsRequest,
      dev.consentd.v1.WatchConsentsResponse> getWatchConsentsMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.WatchConsentsRequest, dev.consentd.v1.WatchConsentsResponse> getWatchConsentsMethod;
    if ((getWatchConsentsMethod = ConsentServiceGrpc.getWatchConsentsMethod) == null) {
      synchronized (ConsentServiceGrpc.class) {
        if ((getWatchConsentsMethod = ConsentServiceGrpc.getWatchConsentsMethod) == null) {
          ConsentServiceGrpc.getWatchConsentsMethod = getWatchConsentsMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.WatchConsentsRequest, dev.consentd.v1.WatchConsentsResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.SERVER_STREAMING)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "WatchConsents"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.WatchConsentsRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.WatchConsentsResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ConsentServiceMethodDescriptorSupplier("WatchConsents"))
              .build();
        }
      }
    }
    return getWatchConsentsMethod;
  }

  private static volatile io.grpc.MethodDescriptor<dev.consentd.v1.GetStatusRequest,
      dev.consentd.v1.GetStatusResponse> getGetStatusMethod;

  @io.grpc.stub.annotations.RpcMethod(
      fullMethodName = SERVICE_NAME + '/' + "GetStatus",
      requestType = dev.consentd.v1.GetStatusRequest.class,
      responseType = dev.consentd.v1.GetStatusResponse.class,
      methodType = io.grpc.MethodDescriptor.MethodType.UNARY)
  public static io.grpc.MethodDescriptor<dev.consentd.v1.GetStatusRequest,
      dev.consentd.v1.GetStatusResponse> getGetStatusMethod() {
    io.grpc.MethodDescriptor<dev.consentd.v1.GetStatusRequest, dev.consentd.v1.GetStatusResponse> getGetStatusMethod;
    if ((getGetStatusMethod = ConsentServiceGrpc.getGetStatusMethod) == null) {
      synchronized (ConsentServiceGrpc.class) {
        if ((getGetStatusMethod = ConsentServiceGrpc.getGetStatusMethod) == null) {
          ConsentServiceGrpc.getGetStatusMethod = getGetStatusMethod =
              io.grpc.MethodDescriptor.<dev.consentd.v1.GetStatusRequest, dev.consentd.v1.GetStatusResponse>newBuilder()
              .setType(io.grpc.MethodDescriptor.MethodType.UNARY)
              .setFullMethodName(generateFullMethodName(SERVICE_NAME, "GetStatus"))
              .setSampledToLocalTracing(true)
              .setRequestMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.GetStatusRequest.getDefaultInstance()))
              .setResponseMarshaller(io.grpc.protobuf.ProtoUtils.marshaller(
                  dev.consentd.v1.GetStatusResponse.getDefaultInstance()))
              .setSchemaDescriptor(new ConsentServiceMethodDescriptorSupplier("GetStatus"))
              .build();
        }
      }
    }
    return getGetStatusMethod;
  }

  /**
   * Creates a new async stub that supports all call types for the service
   */
  public static ConsentServiceStub newStub(io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<ConsentServiceStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<ConsentServiceStub>() {
        @java.lang.Override
        public ConsentServiceStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new ConsentServiceStub(channel, callOptions);
        }
      };
    return ConsentServiceStub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports all types of calls on the service
   */
  public static ConsentServiceBlockingV2Stub newBlockingV2Stub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<ConsentServiceBlockingV2Stub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<ConsentServiceBlockingV2Stub>() {
        @java.lang.Override
        public ConsentServiceBlockingV2Stub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new ConsentServiceBlockingV2Stub(channel, callOptions);
        }
      };
    return ConsentServiceBlockingV2Stub.newStub(factory, channel);
  }

  /**
   * Creates a new blocking-style stub that supports unary and streaming output calls on the service
   */
  public static ConsentServiceBlockingStub newBlockingStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<ConsentServiceBlockingStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<ConsentServiceBlockingStub>() {
        @java.lang.Override
        public ConsentServiceBlockingStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new ConsentServiceBlockingStub(channel, callOptions);
        }
      };
    return ConsentServiceBlockingStub.newStub(factory, channel);
  }

  /**
   * Creates a new ListenableFuture-style stub that supports unary calls on the service
   */
  public static ConsentServiceFutureStub newFutureStub(
      io.grpc.Channel channel) {
    io.grpc.stub.AbstractStub.StubFactory<ConsentServiceFutureStub> factory =
      new io.grpc.stub.AbstractStub.StubFactory<ConsentServiceFutureStub>() {
        @java.lang.Override
        public ConsentServiceFutureStub newStub(io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
          return new ConsentServiceFutureStub(channel, callOptions);
        }
      };
    return ConsentServiceFutureStub.newStub(factory, channel);
  }

  /**
   * <pre>
   * Answers, from memory, whether a business may message a user.
   * A denial is an OK response that says why. Errors mean that no decision was made, and a client
   * that gets one must not send: INVALID_ARGUMENT for a malformed request, UNAVAILABLE before the
   * first load, RESOURCE_EXHAUSTED under overload, DEADLINE_EXCEEDED when min_revision did not arrive.
   * </pre>
   */
  public interface AsyncService {

    /**
     * <pre>
     * Decides one message.
     * </pre>
     */
    default void canSend(dev.consentd.v1.CanSendRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.CanSendResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getCanSendMethod(), responseObserver);
    }

    /**
     * <pre>
     * Decides many messages; results stand in request order.
     * </pre>
     */
    default void batchCanSend(dev.consentd.v1.BatchCanSendRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.BatchCanSendResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getBatchCanSendMethod(), responseObserver);
    }

    /**
     * <pre>
     * Decides messages over one long-lived stream; responses may be matched by sequence. A question
     * for which there is no room to wait is answered by an ItemError of RESOURCE_EXHAUSTED.
     * </pre>
     */
    default io.grpc.stub.StreamObserver<dev.consentd.v1.StreamCanSendRequest> streamCanSend(
        io.grpc.stub.StreamObserver<dev.consentd.v1.StreamCanSendResponse> responseObserver) {
      return io.grpc.stub.ServerCalls.asyncUnimplementedStreamingCall(getStreamCanSendMethod(), responseObserver);
    }

    /**
     * <pre>
     * Screens a campaign's recipients for one business and category.
     * </pre>
     */
    default io.grpc.stub.StreamObserver<dev.consentd.v1.FilterRecipientsRequest> filterRecipients(
        io.grpc.stub.StreamObserver<dev.consentd.v1.FilterRecipientsResponse> responseObserver) {
      return io.grpc.stub.ServerCalls.asyncUnimplementedStreamingCall(getFilterRecipientsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Reads what the cache holds about one user and business.
     * </pre>
     */
    default void getConsent(dev.consentd.v1.GetConsentRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.GetConsentResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetConsentMethod(), responseObserver);
    }

    /**
     * <pre>
     * Streams changes as they are applied, so that queued messages can be withdrawn.
     * </pre>
     */
    default void watchConsents(dev.consentd.v1.WatchConsentsRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.WatchConsentsResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getWatchConsentsMethod(), responseObserver);
    }

    /**
     * <pre>
     * Reads how current the cache is.
     * </pre>
     */
    default void getStatus(dev.consentd.v1.GetStatusRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.GetStatusResponse> responseObserver) {
      io.grpc.stub.ServerCalls.asyncUnimplementedUnaryCall(getGetStatusMethod(), responseObserver);
    }
  }

  /**
   * Base class for the server implementation of the service ConsentService.
   * <pre>
   * Answers, from memory, whether a business may message a user.
   * A denial is an OK response that says why. Errors mean that no decision was made, and a client
   * that gets one must not send: INVALID_ARGUMENT for a malformed request, UNAVAILABLE before the
   * first load, RESOURCE_EXHAUSTED under overload, DEADLINE_EXCEEDED when min_revision did not arrive.
   * </pre>
   */
  public static abstract class ConsentServiceImplBase
      implements io.grpc.BindableService, AsyncService {

    @java.lang.Override public final io.grpc.ServerServiceDefinition bindService() {
      return ConsentServiceGrpc.bindService(this);
    }
  }

  /**
   * A stub to allow clients to do asynchronous rpc calls to service ConsentService.
   * <pre>
   * Answers, from memory, whether a business may message a user.
   * A denial is an OK response that says why. Errors mean that no decision was made, and a client
   * that gets one must not send: INVALID_ARGUMENT for a malformed request, UNAVAILABLE before the
   * first load, RESOURCE_EXHAUSTED under overload, DEADLINE_EXCEEDED when min_revision did not arrive.
   * </pre>
   */
  public static final class ConsentServiceStub
      extends io.grpc.stub.AbstractAsyncStub<ConsentServiceStub> {
    private ConsentServiceStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected ConsentServiceStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new ConsentServiceStub(channel, callOptions);
    }

    /**
     * <pre>
     * Decides one message.
     * </pre>
     */
    public void canSend(dev.consentd.v1.CanSendRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.CanSendResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getCanSendMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Decides many messages; results stand in request order.
     * </pre>
     */
    public void batchCanSend(dev.consentd.v1.BatchCanSendRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.BatchCanSendResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getBatchCanSendMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Decides messages over one long-lived stream; responses may be matched by sequence. A question
     * for which there is no room to wait is answered by an ItemError of RESOURCE_EXHAUSTED.
     * </pre>
     */
    public io.grpc.stub.StreamObserver<dev.consentd.v1.StreamCanSendRequest> streamCanSend(
        io.grpc.stub.StreamObserver<dev.consentd.v1.StreamCanSendResponse> responseObserver) {
      return io.grpc.stub.ClientCalls.asyncBidiStreamingCall(
          getChannel().newCall(getStreamCanSendMethod(), getCallOptions()), responseObserver);
    }

    /**
     * <pre>
     * Screens a campaign's recipients for one business and category.
     * </pre>
     */
    public io.grpc.stub.StreamObserver<dev.consentd.v1.FilterRecipientsRequest> filterRecipients(
        io.grpc.stub.StreamObserver<dev.consentd.v1.FilterRecipientsResponse> responseObserver) {
      return io.grpc.stub.ClientCalls.asyncBidiStreamingCall(
          getChannel().newCall(getFilterRecipientsMethod(), getCallOptions()), responseObserver);
    }

    /**
     * <pre>
     * Reads what the cache holds about one user and business.
     * </pre>
     */
    public void getConsent(dev.consentd.v1.GetConsentRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.GetConsentResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetConsentMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Streams changes as they are applied, so that queued messages can be withdrawn.
     * </pre>
     */
    public void watchConsents(dev.consentd.v1.WatchConsentsRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.WatchConsentsResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncServerStreamingCall(
          getChannel().newCall(getWatchConsentsMethod(), getCallOptions()), request, responseObserver);
    }

    /**
     * <pre>
     * Reads how current the cache is.
     * </pre>
     */
    public void getStatus(dev.consentd.v1.GetStatusRequest request,
        io.grpc.stub.StreamObserver<dev.consentd.v1.GetStatusResponse> responseObserver) {
      io.grpc.stub.ClientCalls.asyncUnaryCall(
          getChannel().newCall(getGetStatusMethod(), getCallOptions()), request, responseObserver);
    }
  }

  /**
   * A stub to allow clients to do synchronous rpc calls to service ConsentService.
   * <pre>
   * Answers, from memory, whether a business may message a user.
   * A denial is an OK response that says why. Errors mean that no decision was made, and a client
   * that gets one must not send: INVALID_ARGUMENT for a malformed request, UNAVAILABLE before the
   * first load, RESOURCE_EXHAUSTED under overload, DEADLINE_EXCEEDED when min_revision did not arrive.
   * </pre>
   */
  public static final class ConsentServiceBlockingV2Stub
      extends io.grpc.stub.AbstractBlockingStub<ConsentServiceBlockingV2Stub> {
    private ConsentServiceBlockingV2Stub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected ConsentServiceBlockingV2Stub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new ConsentServiceBlockingV2Stub(channel, callOptions);
    }

    /**
     * <pre>
     * Decides one message.
     * </pre>
     */
    public dev.consentd.v1.CanSendResponse canSend(dev.consentd.v1.CanSendRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getCanSendMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Decides many messages; results stand in request order.
     * </pre>
     */
    public dev.consentd.v1.BatchCanSendResponse batchCanSend(dev.consentd.v1.BatchCanSendRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getBatchCanSendMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Decides messages over one long-lived stream; responses may be matched by sequence. A question
     * for which there is no room to wait is answered by an ItemError of RESOURCE_EXHAUSTED.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<dev.consentd.v1.StreamCanSendRequest, dev.consentd.v1.StreamCanSendResponse>
        streamCanSend() {
      return io.grpc.stub.ClientCalls.blockingBidiStreamingCall(
          getChannel(), getStreamCanSendMethod(), getCallOptions());
    }

    /**
     * <pre>
     * Screens a campaign's recipients for one business and category.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<dev.consentd.v1.FilterRecipientsRequest, dev.consentd.v1.FilterRecipientsResponse>
        filterRecipients() {
      return io.grpc.stub.ClientCalls.blockingBidiStreamingCall(
          getChannel(), getFilterRecipientsMethod(), getCallOptions());
    }

    /**
     * <pre>
     * Reads what the cache holds about one user and business.
     * </pre>
     */
    public dev.consentd.v1.GetConsentResponse getConsent(dev.consentd.v1.GetConsentRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getGetConsentMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Streams changes as they are applied, so that queued messages can be withdrawn.
     * </pre>
     */
    @io.grpc.ExperimentalApi("https://github.com/grpc/grpc-java/issues/10918")
    public io.grpc.stub.BlockingClientCall<?, dev.consentd.v1.WatchConsentsResponse>
        watchConsents(dev.consentd.v1.WatchConsentsRequest request) {
      return io.grpc.stub.ClientCalls.blockingV2ServerStreamingCall(
          getChannel(), getWatchConsentsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Reads how current the cache is.
     * </pre>
     */
    public dev.consentd.v1.GetStatusResponse getStatus(dev.consentd.v1.GetStatusRequest request) throws io.grpc.StatusException {
      return io.grpc.stub.ClientCalls.blockingV2UnaryCall(
          getChannel(), getGetStatusMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do limited synchronous rpc calls to service ConsentService.
   * <pre>
   * Answers, from memory, whether a business may message a user.
   * A denial is an OK response that says why. Errors mean that no decision was made, and a client
   * that gets one must not send: INVALID_ARGUMENT for a malformed request, UNAVAILABLE before the
   * first load, RESOURCE_EXHAUSTED under overload, DEADLINE_EXCEEDED when min_revision did not arrive.
   * </pre>
   */
  public static final class ConsentServiceBlockingStub
      extends io.grpc.stub.AbstractBlockingStub<ConsentServiceBlockingStub> {
    private ConsentServiceBlockingStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected ConsentServiceBlockingStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new ConsentServiceBlockingStub(channel, callOptions);
    }

    /**
     * <pre>
     * Decides one message.
     * </pre>
     */
    public dev.consentd.v1.CanSendResponse canSend(dev.consentd.v1.CanSendRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getCanSendMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Decides many messages; results stand in request order.
     * </pre>
     */
    public dev.consentd.v1.BatchCanSendResponse batchCanSend(dev.consentd.v1.BatchCanSendRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getBatchCanSendMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Reads what the cache holds about one user and business.
     * </pre>
     */
    public dev.consentd.v1.GetConsentResponse getConsent(dev.consentd.v1.GetConsentRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetConsentMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Streams changes as they are applied, so that queued messages can be withdrawn.
     * </pre>
     */
    public java.util.Iterator<dev.consentd.v1.WatchConsentsResponse> watchConsents(
        dev.consentd.v1.WatchConsentsRequest request) {
      return io.grpc.stub.ClientCalls.blockingServerStreamingCall(
          getChannel(), getWatchConsentsMethod(), getCallOptions(), request);
    }

    /**
     * <pre>
     * Reads how current the cache is.
     * </pre>
     */
    public dev.consentd.v1.GetStatusResponse getStatus(dev.consentd.v1.GetStatusRequest request) {
      return io.grpc.stub.ClientCalls.blockingUnaryCall(
          getChannel(), getGetStatusMethod(), getCallOptions(), request);
    }
  }

  /**
   * A stub to allow clients to do ListenableFuture-style rpc calls to service ConsentService.
   * <pre>
   * Answers, from memory, whether a business may message a user.
   * A denial is an OK response that says why. Errors mean that no decision was made, and a client
   * that gets one must not send: INVALID_ARGUMENT for a malformed request, UNAVAILABLE before the
   * first load, RESOURCE_EXHAUSTED under overload, DEADLINE_EXCEEDED when min_revision did not arrive.
   * </pre>
   */
  public static final class ConsentServiceFutureStub
      extends io.grpc.stub.AbstractFutureStub<ConsentServiceFutureStub> {
    private ConsentServiceFutureStub(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      super(channel, callOptions);
    }

    @java.lang.Override
    protected ConsentServiceFutureStub build(
        io.grpc.Channel channel, io.grpc.CallOptions callOptions) {
      return new ConsentServiceFutureStub(channel, callOptions);
    }

    /**
     * <pre>
     * Decides one message.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.consentd.v1.CanSendResponse> canSend(
        dev.consentd.v1.CanSendRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getCanSendMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Decides many messages; results stand in request order.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.consentd.v1.BatchCanSendResponse> batchCanSend(
        dev.consentd.v1.BatchCanSendRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getBatchCanSendMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Reads what the cache holds about one user and business.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.consentd.v1.GetConsentResponse> getConsent(
        dev.consentd.v1.GetConsentRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetConsentMethod(), getCallOptions()), request);
    }

    /**
     * <pre>
     * Reads how current the cache is.
     * </pre>
     */
    public com.google.common.util.concurrent.ListenableFuture<dev.consentd.v1.GetStatusResponse> getStatus(
        dev.consentd.v1.GetStatusRequest request) {
      return io.grpc.stub.ClientCalls.futureUnaryCall(
          getChannel().newCall(getGetStatusMethod(), getCallOptions()), request);
    }
  }

  private static final int METHODID_CAN_SEND = 0;
  private static final int METHODID_BATCH_CAN_SEND = 1;
  private static final int METHODID_GET_CONSENT = 2;
  private static final int METHODID_WATCH_CONSENTS = 3;
  private static final int METHODID_GET_STATUS = 4;
  private static final int METHODID_STREAM_CAN_SEND = 5;
  private static final int METHODID_FILTER_RECIPIENTS = 6;

  private static final class MethodHandlers<Req, Resp> implements
      io.grpc.stub.ServerCalls.UnaryMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ServerStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.ClientStreamingMethod<Req, Resp>,
      io.grpc.stub.ServerCalls.BidiStreamingMethod<Req, Resp> {
    private final AsyncService serviceImpl;
    private final int methodId;

    MethodHandlers(AsyncService serviceImpl, int methodId) {
      this.serviceImpl = serviceImpl;
      this.methodId = methodId;
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public void invoke(Req request, io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        case METHODID_CAN_SEND:
          serviceImpl.canSend((dev.consentd.v1.CanSendRequest) request,
              (io.grpc.stub.StreamObserver<dev.consentd.v1.CanSendResponse>) responseObserver);
          break;
        case METHODID_BATCH_CAN_SEND:
          serviceImpl.batchCanSend((dev.consentd.v1.BatchCanSendRequest) request,
              (io.grpc.stub.StreamObserver<dev.consentd.v1.BatchCanSendResponse>) responseObserver);
          break;
        case METHODID_GET_CONSENT:
          serviceImpl.getConsent((dev.consentd.v1.GetConsentRequest) request,
              (io.grpc.stub.StreamObserver<dev.consentd.v1.GetConsentResponse>) responseObserver);
          break;
        case METHODID_WATCH_CONSENTS:
          serviceImpl.watchConsents((dev.consentd.v1.WatchConsentsRequest) request,
              (io.grpc.stub.StreamObserver<dev.consentd.v1.WatchConsentsResponse>) responseObserver);
          break;
        case METHODID_GET_STATUS:
          serviceImpl.getStatus((dev.consentd.v1.GetStatusRequest) request,
              (io.grpc.stub.StreamObserver<dev.consentd.v1.GetStatusResponse>) responseObserver);
          break;
        default:
          throw new AssertionError();
      }
    }

    @java.lang.Override
    @java.lang.SuppressWarnings("unchecked")
    public io.grpc.stub.StreamObserver<Req> invoke(
        io.grpc.stub.StreamObserver<Resp> responseObserver) {
      switch (methodId) {
        case METHODID_STREAM_CAN_SEND:
          return (io.grpc.stub.StreamObserver<Req>) serviceImpl.streamCanSend(
              (io.grpc.stub.StreamObserver<dev.consentd.v1.StreamCanSendResponse>) responseObserver);
        case METHODID_FILTER_RECIPIENTS:
          return (io.grpc.stub.StreamObserver<Req>) serviceImpl.filterRecipients(
              (io.grpc.stub.StreamObserver<dev.consentd.v1.FilterRecipientsResponse>) responseObserver);
        default:
          throw new AssertionError();
      }
    }
  }

  public static final io.grpc.ServerServiceDefinition bindService(AsyncService service) {
    return io.grpc.ServerServiceDefinition.builder(getServiceDescriptor())
        .addMethod(
          getCanSendMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.consentd.v1.CanSendRequest,
              dev.consentd.v1.CanSendResponse>(
                service, METHODID_CAN_SEND)))
        .addMethod(
          getBatchCanSendMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.consentd.v1.BatchCanSendRequest,
              dev.consentd.v1.BatchCanSendResponse>(
                service, METHODID_BATCH_CAN_SEND)))
        .addMethod(
          getStreamCanSendMethod(),
          io.grpc.stub.ServerCalls.asyncBidiStreamingCall(
            new MethodHandlers<
              dev.consentd.v1.StreamCanSendRequest,
              dev.consentd.v1.StreamCanSendResponse>(
                service, METHODID_STREAM_CAN_SEND)))
        .addMethod(
          getFilterRecipientsMethod(),
          io.grpc.stub.ServerCalls.asyncBidiStreamingCall(
            new MethodHandlers<
              dev.consentd.v1.FilterRecipientsRequest,
              dev.consentd.v1.FilterRecipientsResponse>(
                service, METHODID_FILTER_RECIPIENTS)))
        .addMethod(
          getGetConsentMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.consentd.v1.GetConsentRequest,
              dev.consentd.v1.GetConsentResponse>(
                service, METHODID_GET_CONSENT)))
        .addMethod(
          getWatchConsentsMethod(),
          io.grpc.stub.ServerCalls.asyncServerStreamingCall(
            new MethodHandlers<
              dev.consentd.v1.WatchConsentsRequest,
              dev.consentd.v1.WatchConsentsResponse>(
                service, METHODID_WATCH_CONSENTS)))
        .addMethod(
          getGetStatusMethod(),
          io.grpc.stub.ServerCalls.asyncUnaryCall(
            new MethodHandlers<
              dev.consentd.v1.GetStatusRequest,
              dev.consentd.v1.GetStatusResponse>(
                service, METHODID_GET_STATUS)))
        .build();
  }

  private static abstract class ConsentServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoFileDescriptorSupplier, io.grpc.protobuf.ProtoServiceDescriptorSupplier {
    ConsentServiceBaseDescriptorSupplier() {}

    @java.lang.Override
    public com.google.protobuf.Descriptors.FileDescriptor getFileDescriptor() {
      return dev.consentd.v1.ConsentServiceOuterClass.getDescriptor();
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.ServiceDescriptor getServiceDescriptor() {
      return getFileDescriptor().findServiceByName("ConsentService");
    }
  }

  private static final class ConsentServiceFileDescriptorSupplier
      extends ConsentServiceBaseDescriptorSupplier {
    ConsentServiceFileDescriptorSupplier() {}
  }

  private static final class ConsentServiceMethodDescriptorSupplier
      extends ConsentServiceBaseDescriptorSupplier
      implements io.grpc.protobuf.ProtoMethodDescriptorSupplier {
    private final java.lang.String methodName;

    ConsentServiceMethodDescriptorSupplier(java.lang.String methodName) {
      this.methodName = methodName;
    }

    @java.lang.Override
    public com.google.protobuf.Descriptors.MethodDescriptor getMethodDescriptor() {
      return getServiceDescriptor().findMethodByName(methodName);
    }
  }

  private static volatile io.grpc.ServiceDescriptor serviceDescriptor;

  public static io.grpc.ServiceDescriptor getServiceDescriptor() {
    io.grpc.ServiceDescriptor result = serviceDescriptor;
    if (result == null) {
      synchronized (ConsentServiceGrpc.class) {
        result = serviceDescriptor;
        if (result == null) {
          serviceDescriptor = result = io.grpc.ServiceDescriptor.newBuilder(SERVICE_NAME)
              .setSchemaDescriptor(new ConsentServiceFileDescriptorSupplier())
              .addMethod(getCanSendMethod())
              .addMethod(getBatchCanSendMethod())
              .addMethod(getStreamCanSendMethod())
              .addMethod(getFilterRecipientsMethod())
              .addMethod(getGetConsentMethod())
              .addMethod(getWatchConsentsMethod())
              .addMethod(getGetStatusMethod())
              .build();
        }
      }
    }
    return result;
  }
}
